# Projects, keys and budgets of Farebox as code, through its admin API and a provider for any REST API.
#
#   export TF_VAR_farebox_url=https://farebox.example.com TF_VAR_farebox_token=fba-...
#   terraform init && terraform apply
#
# A key's secret is in the state and nowhere else: keep the state where secrets may lie.
# Never applied yet: Terraform 1.15 reads and formats these files, the admin API takes what they send (tests/deploy,
# tests/gateway/admin/test_terraform.py); the provider itself was not at hand. Begin with `terraform plan`.
# Source: Mastercard/restapi 3.0, resource restapi_object, read 2026-11.

terraform {
  required_version = ">= 1.5"
  required_providers {
    restapi = {
      source  = "Mastercard/restapi"
      version = ">= 3.0.0"
    }
  }
}

provider "restapi" {
  uri                  = var.farebox_url
  write_returns_object = true
  headers = {
    Authorization = "Bearer ${var.farebox_token}"
    Content-Type  = "application/json"
  }
}

resource "restapi_object" "project" {
  for_each     = var.projects
  path         = "/admin/v1/projects"
  id_attribute = "id"
  data         = jsonencode({ name = each.key })

  # Projects are listed, not read one by one; nor are they removed: their usage stays in the books.
  read_path   = "/admin/v1/projects"
  read_search = { search_key = "id", search_value = "{id}" }
  force_new   = ["name"]
  lifecycle {
    prevent_destroy = true
  }
}

resource "restapi_object" "key" {
  for_each     = var.projects
  path         = "/admin/v1/keys"
  id_attribute = "key/id"
  data = jsonencode({
    project_id = restapi_object.project[each.key].id
    name       = "${each.key} (terraform)"
    models     = each.value.models
    rpm        = each.value.rpm
  })

  read_path     = "/admin/v1/keys/{id}"
  update_method = "PATCH"
  update_path   = "/admin/v1/keys/{id}"
  update_data = jsonencode({
    name   = "${each.key} (terraform)"
    models = each.value.models
    rpm    = each.value.rpm
  })
  destroy_path = "/admin/v1/keys/{id}"
}

resource "restapi_object" "budget" {
  for_each      = var.projects
  path          = "/admin/v1/budgets"
  object_id     = restapi_object.project[each.key].id
  create_method = "PUT"
  create_path   = "/admin/v1/budgets/project/{id}/month"
  update_method = "PUT"
  update_path   = "/admin/v1/budgets/project/{id}/month"
  destroy_path  = "/admin/v1/budgets/project/{id}/month"
  read_path     = "/admin/v1/budgets"
  read_search   = { search_key = "scope_id", search_value = "{id}" }
  data          = jsonencode({ limit_usd = each.value.usd_a_month })
}

output "keys" {
  description = "What clients are given, by project."
  value       = { for name, made in restapi_object.key : name => jsondecode(made.create_response).secret }
  sensitive   = true
}
