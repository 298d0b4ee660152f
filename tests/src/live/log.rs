//! Access-log lines of a case, text or JSON, by the JSON names of their fields.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::log::{FIELDS, Line};

/// One line.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As written.
    pub text: String,
    /// Its object, if it is JSON.
    pub json: Option<Map<String, Value>>,
    fields: BTreeMap<String, String>,
}

impl Entry {
    /// Reads a line. One that is in neither known format has no fields.
    #[must_use]
    pub fn read(line: &str) -> Self {
        let json = serde_json::from_str::<Map<String, Value>>(line).ok();
        let fields = match (&json, Line::parse(line)) {
            (Some(object), _) => {
                object.iter().map(|(key, value)| (key.clone(), plain(value))).collect()
            }
            (None, Ok(parsed)) => FIELDS
                .iter()
                .map(|field| (json_name(field), parsed.field(field).to_owned()))
                .collect(),
            (None, Err(_)) => BTreeMap::new(),
        };
        Self { text: line.to_owned(), json, fields }
    }

    /// A field by its JSON name; `-` where it has no value.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The response flags, in no order.
    #[must_use]
    pub fn flags(&self) -> Option<Vec<&str>> {
        let mut flags: Vec<_> =
            self.field("response_flags")?.split(',').filter(|flag| *flag != "-").collect();
        flags.sort_unstable();
        Some(flags)
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The JSON name of a field of the text format.
fn json_name(field: &str) -> String {
    match field {
        "X-ENVOY-UPSTREAM-SERVICE-TIME" => "upstream_service_time".to_owned(),
        "X-REQUEST-ID" => "request_id".to_owned(),
        "UPSTREAM_CLUSTER_RAW" => "upstream_cluster".to_owned(),
        other => other.to_ascii_lowercase().replace('-', "_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_read_alike() {
        let text = r#"[2024-11-04T02:55:43.908Z] "- - -" 0 UF,URX - - "-" 892 5630 562 - "-" "-" "-" "-" "31.13.112.9:443" outbound|443||www.google.com 10.1.3.73:42256 31.13.112.9:443 10.1.3.73:42240 www.google.com -"#;
        let json = r#"{"response_flags":"URX,UF","upstream_cluster":"outbound|443||www.google.com","route_name":null}"#;
        for line in [text, json] {
            let entry = Entry::read(line);
            assert_eq!(entry.field("upstream_cluster"), Some("outbound|443||www.google.com"));
            assert_eq!(entry.field("route_name"), Some("-"));
            assert_eq!(entry.flags(), Some(vec!["UF", "URX"]));
        }
        assert_eq!(Entry::read("something else").field("route_name"), None);
    }
}
