"""What an operator imports: Grafana dashboards, Prometheus rules, a Collector's configuration."""
