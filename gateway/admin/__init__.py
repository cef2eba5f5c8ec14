"""The front office: sign-in, the admin API under /admin/v1, the dashboard under /ui. Never on a request's way."""
