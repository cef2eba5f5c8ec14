variable "farebox_url" {
  description = "Address of the gateway, or of its admin port."
  type        = string
  default     = "http://127.0.0.1:4000"
}

variable "farebox_token" {
  description = "An API token of an owner or admin, made in the dashboard under Settings."
  type        = string
  sensitive   = true
}

variable "projects" {
  description = "By name: what its key may ask for, how often, and what the project may spend in a month."
  type = map(object({
    models      = optional(list(string))
    rpm         = optional(number)
    usd_a_month = string
  }))
  default = {
    search = { models = ["gpt-*", "claude-*"], rpm = 600, usd_a_month = "250" }
    docs   = { usd_a_month = "20" }
  }
}
