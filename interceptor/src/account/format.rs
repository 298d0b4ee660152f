//! A record as text: Envoy's default format, field for field (LOG-1).
