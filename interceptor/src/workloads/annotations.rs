//! What a pod's annotations, or the mesh's install-time values, say of interception (CAP-3, CAP-4).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Which addresses an include list names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// `*`.
    All,
    /// These; none where the list is empty.
    Only(Vec<IpNet>),
}

impl Ranges {
    /// Whether `ip` is among them.
    pub fn hold(&self, ip: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Only(networks) => networks.iter().any(|network| network.contains(&ip)),
        }
    }
}

/// The four lists that say what is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureLists {
    /// `includeOutboundIPRanges`.
    pub include_ranges: Ranges,
    /// `excludeOutboundIPRanges`.
    pub exclude_ranges: Vec<IpNet>,
    /// `includeOutboundPorts`.
    pub include_ports: Vec<u16>,
    /// `excludeOutboundPorts`.
    pub exclude_ports: Vec<u16>,
}

/// Everything is captured.
impl Default for CaptureLists {
    fn default() -> Self {
        Self {
            include_ranges: Ranges::All,
            exclude_ranges: Vec::new(),
            include_ports: Vec::new(),
            exclude_ports: Vec::new(),
        }
    }
}

/// A list that is not readable. With a malformed list, injection of the pod fails (CAP-4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct BadList {
    /// The annotation, or the install-time value.
    pub key: String,
    /// What is wrong, and with which item.
    pub message: String,
}

/// What stands before each of Istio's traffic annotations.
const PREFIX: &str = "traffic.sidecar.istio.io/";

impl CaptureLists {
    /// The names of Istio's install-time values, below `global.proxy`.
    pub const VALUES: [&str; 4] =
        ["includeIPRanges", "excludeIPRanges", "includeOutboundPorts", "excludeOutboundPorts"];

    /// Istio's install-time values, keyed `includeIPRanges` and so on as below `global.proxy`.
    ///
    /// # Errors
    /// A list is malformed.
    pub fn from_values(values: &BTreeMap<String, String>) -> Result<Self, BadList> {
        let mut lists = Self::default();
        let fields =
            [Field::IncludeRanges, Field::ExcludeRanges, Field::IncludePorts, Field::ExcludePorts];
        for (key, field) in Self::VALUES.into_iter().zip(fields) {
            if let Some(text) = values.get(key) {
                lists.set(field, key, text)?;
            }
        }
        Ok(lists)
    }

    /// These lists with those that the pod's annotations replace: whole lists, never extended
    /// (CAP-3). Annotations of other names are left alone; Istio's inbound ones are read for
    /// mistakes only, as they too keep a pod from being injected.
    ///
    /// # Errors
    /// A list is malformed.
    pub fn replaced_by(mut self, annotations: &BTreeMap<String, String>) -> Result<Self, BadList> {
        for (key, text) in annotations {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let field = match name {
                "includeOutboundIPRanges" => Field::IncludeRanges,
                "excludeOutboundIPRanges" => Field::ExcludeRanges,
                "includeOutboundPorts" => Field::IncludePorts,
                "excludeOutboundPorts" => Field::ExcludePorts,
                "includeInboundPorts" if text == "*" => continue,
                "includeInboundPorts" | "excludeInboundPorts" => {
                    ports(key, text)?;
                    continue;
                }
                _ => continue,
            };
            self.set(field, key, text)?;
        }
        Ok(self)
    }

    /// The same without what goes to `networks`, whoever asked for that beside the pod.
    pub fn without(mut self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        self.exclude_ranges.extend(networks);
        self.exclude_ranges.sort_unstable();
        self.exclude_ranges.dedup();
        self
    }

    fn set(&mut self, field: Field, key: &str, text: &str) -> Result<(), BadList> {
        match field {
            Field::IncludeRanges if text == "*" => self.include_ranges = Ranges::All,
            Field::IncludeRanges => self.include_ranges = Ranges::Only(ranges(key, text)?),
            Field::ExcludeRanges => self.exclude_ranges = ranges(key, text)?,
            Field::IncludePorts => self.include_ports = ports(key, text)?,
            Field::ExcludePorts => self.exclude_ports = ports(key, text)?,
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Field {
    IncludeRanges,
    ExcludeRanges,
    IncludePorts,
    ExcludePorts,
}

/// Comma-separated CIDRs: no bare address, no space, no `*` (CAP-4).
fn ranges(key: &str, text: &str) -> Result<Vec<IpNet>, BadList> {
    items(text)
        .map(|item| {
            item.parse().map_err(|_| BadList {
                key: key.to_owned(),
                message: format!("\"{item}\" is not a CIDR; write one like 10.0.0.0/8"),
            })
        })
        .collect()
}

/// Comma-separated decimal ports; spaces around them do not matter (CAP-4).
fn ports(key: &str, text: &str) -> Result<Vec<u16>, BadList> {
    items(text)
        .map(|item| {
            let digits = item.trim();
            let decimal = digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|_| decimal).ok_or_else(|| BadList {
                key: key.to_owned(),
                message: format!("\"{item}\" is not a port; write a number from 0 to 65535"),
            })
        })
        .collect()
}

/// The items of a list; an empty text has none.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(move |_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(name: &str, text: &str) -> Result<CaptureLists, BadList> {
        let annotations = [(format!("{PREFIX}{name}"), text.to_owned())].into();
        CaptureLists::default().replaced_by(&annotations)
    }

    #[test]
    fn cap_4_syntax() {
        let table: &[(&str, &str, bool)] = &[
            ("includeOutboundIPRanges", "*", true),
            ("includeOutboundIPRanges", "", true),
            ("includeOutboundIPRanges", "10.0.0.0/8,2001:db8::/32", true),
            ("includeOutboundIPRanges", "10.1.2.3/8", true),
            ("includeOutboundIPRanges", "10.0.0.0/8, 192.0.2.0/24", false),
            ("includeOutboundIPRanges", "10.0.0.1", false),
            ("includeOutboundIPRanges", "10.0.0.0/33", false),
            ("includeOutboundIPRanges", "*,10.0.0.0/8", false),
            ("includeOutboundIPRanges", "10.0.0.0/8,", false),
            ("excludeOutboundIPRanges", "*", false),
            ("excludeOutboundIPRanges", "", true),
            ("excludeOutboundIPRanges", "169.254.0.0/16", true),
            ("includeOutboundPorts", "80, 443 ,0,65535", true),
            ("includeOutboundPorts", "*", false),
            ("includeOutboundPorts", "65536", false),
            ("excludeOutboundPorts", "", true),
            ("excludeOutboundPorts", "-1", false),
            ("excludeOutboundPorts", "+80", false),
            ("excludeOutboundPorts", "80,,90", false),
            ("excludeOutboundPorts", "http", false),
            ("includeInboundPorts", "*", true),
            ("includeInboundPorts", "x", false),
            ("excludeInboundPorts", "*", false),
            ("anythingElse", "x", true),
        ];
        for (name, text, accepted) in table {
            assert_eq!(annotated(name, text).is_ok(), *accepted, "{name}: {text:?}");
        }
        let error = annotated("excludeOutboundPorts", "http").unwrap_err();
        assert_eq!(
            error.to_string(),
            "traffic.sidecar.istio.io/excludeOutboundPorts: \"http\" is not a port; write a number \
             from 0 to 65535"
        );
    }

    #[test]
    fn cap_3_annotations_replace_values() {
        let values = [
            ("excludeOutboundPorts".to_owned(), "25".to_owned()),
            ("includeIPRanges".to_owned(), "10.0.0.0/8".to_owned()),
        ];
        let mesh = CaptureLists::from_values(&values.into()).unwrap();
        assert_eq!(mesh.exclude_ports, [25]);
        let pod = [(format!("{PREFIX}excludeOutboundPorts"), "26".to_owned())];
        let lists = mesh.replaced_by(&pod.into()).unwrap();
        assert_eq!(lists.exclude_ports, [26]);
        assert!(!lists.include_ranges.hold("192.0.2.1".parse().unwrap()));
        assert!(lists.include_ranges.hold("10.1.1.1".parse().unwrap()));
    }
}
