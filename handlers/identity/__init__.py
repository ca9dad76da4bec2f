"""Who a workload is: short-lived OIDC tokens for sandboxes, and the issuer that others check them with (docs/adr/0024)."""
