//! The hosts of entries, and the index that finds the entries for a name.

use std::collections::HashMap;

use super::host::{BadHostName, HostName};

/// A host as an entry gives it (HTTP-4, HTTP-6, T-22).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum EntryHost {
    /// This name only.
    Exact(HostName),
    /// `*.suffix`: one or more whole labels in front of the suffix, never the suffix itself.
    Wildcard(HostName),
    /// `*suffix`: any non-empty text in front (istio profile, plaintext HTTP only).
    Partial(HostName),
}

impl EntryHost {
    /// Reads a host of a ServiceEntry.
    ///
    /// # Errors
    /// A bare `*`, a `*` anywhere but at the start, or what is not a host name.
    pub(crate) fn parse(text: &str) -> Result<Self, BadHostName> {
        let (kind, host): (fn(HostName) -> Self, &str) = match text.strip_prefix('*') {
            None => (Self::Exact, text),
            Some("") => {
                return Err(BadHostName(
                    "\"*\" matches every host; name the hosts, or the domain as *.example.com",
                ));
            }
            Some(rest) => match rest.strip_prefix('.') {
                Some(suffix) => (Self::Wildcard, suffix),
                None => (Self::Partial, rest),
            },
        };
        if host.contains('*') {
            return Err(BadHostName("a wildcard must be the first label"));
        }
        // The text in front of a partial wildcard's `-` makes it the middle of a label.
        let partial = text.strip_prefix("*-").filter(|rest| !rest.starts_with('.'));
        let labels = HostName::parse(partial.unwrap_or(host))?;
        if !labels.is_rfc_1123() {
            return Err(BadHostName(
                "a label of a host consists of letters, digits and, inside, '-'",
            ));
        }
        HostName::parse(host).map(kind)
    }

    /// Whether `name` is one of its names (HTTP-4, HTTP-6).
    pub(crate) fn matches(&self, name: &HostName) -> bool {
        match self {
            Self::Exact(own) => own == name,
            Self::Wildcard(suffix) => name.parents().any(|parent| parent == suffix.as_str()),
            Self::Partial(suffix) => {
                let (name, suffix) = (name.as_str(), suffix.as_str());
                name.len() > suffix.len() && name.ends_with(suffix)
            }
        }
    }

    /// Whether every name of `other` is one of its names.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exact(name)) => self.matches(name),
            (Self::Wildcard(_), Self::Wildcard(suffix)) => self == other || self.matches(suffix),
            (Self::Partial(own), Self::Wildcard(suffix) | Self::Partial(suffix)) => {
                suffix.as_str().ends_with(own.as_str())
            }
            (Self::Wildcard(own), Self::Partial(suffix)) => {
                suffix.parents().any(|parent| parent == own.as_str())
            }
            (Self::Exact(_), _) => false,
        }
    }

    /// How specific it is: an exact name before any wildcard, then the longer suffix (HTTP-2).
    pub(crate) fn specificity(&self) -> (bool, usize) {
        match self {
            Self::Exact(name) => (true, name.as_str().len()),
            Self::Wildcard(suffix) => (false, suffix.as_str().len() + 1),
            Self::Partial(suffix) => (false, suffix.as_str().len()),
        }
    }

    /// The one name that this is, if it is one.
    pub(crate) fn exact(&self) -> Option<&HostName> {
        match self {
            Self::Exact(name) => Some(name),
            Self::Wildcard(_) | Self::Partial(_) => None,
        }
    }
}

impl std::fmt::Display for EntryHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Partial(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// Names to service numbers; a lookup costs one hash per label, however many hosts there are.
#[derive(Debug, Clone, Default)]
pub(super) struct HostIndex {
    exact: HashMap<HostName, Vec<u32>>,
    wildcard: HashMap<HostName, Vec<u32>>,
    /// Few in practice, and absent in strict.
    partial: Vec<(HostName, u32)>,
}

impl HostIndex {
    /// Adds a service; those added first come first among equals (REG-4).
    pub(super) fn insert(&mut self, host: &EntryHost, service: u32) {
        match host {
            EntryHost::Exact(name) => {
                self.exact.entry(name.clone()).or_default().push(service);
            }
            EntryHost::Wildcard(suffix) => {
                self.wildcard.entry(suffix.clone()).or_default().push(service);
            }
            EntryHost::Partial(suffix) => self.partial.push((suffix.clone(), service)),
        }
    }

    /// Whether nothing was added.
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.partial.is_empty()
    }

    /// The services for `name`, best first: exact, then the longest suffix (HTTP-2).
    pub(super) fn matches<'a>(&'a self, name: &'a HostName) -> impl Iterator<Item = u32> + 'a {
        let exact = self.exact.get(name.as_str()).into_iter().flatten().copied();
        let wildcard =
            name.parents().filter_map(|suffix| Some((suffix, self.wildcard.get(suffix)?)));
        // The dot belongs to a whole-label suffix: `*foo.com` gives more of a name than `*.com`.
        let mut suffixes: Vec<(usize, u32)> = wildcard
            .flat_map(|(suffix, services)| services.iter().map(|s| (suffix.len() + 1, *s)))
            .collect();
        if !self.partial.is_empty() {
            let name = name.as_str();
            let partial = self.partial.iter();
            let fitting = partial
                .map(|(suffix, service)| (suffix.as_str(), *service))
                .filter(|(suffix, _)| name.len() > suffix.len() && name.ends_with(suffix));
            suffixes.extend(fitting.map(|(suffix, service)| (suffix.len(), service)));
            suffixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        }
        exact.chain(suffixes.into_iter().map(|(_, service)| service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(hosts: &[&str]) -> HostIndex {
        let mut index = HostIndex::default();
        for (number, host) in (0..).zip(hosts) {
            index.insert(&EntryHost::parse(host).expect("a host"), number);
        }
        index
    }

    #[test]
    fn http_2_and_http_4_and_t_22_precedence_and_whole_labels() {
        let index = index(&["*.com", "*.foo.com", "a.foo.com", "*.a.foo.com", "a.foo.com"]);
        for (name, expected) in [
            ("a.foo.com", &[2, 4, 1, 0][..]),
            ("A.FOO.COM.", &[2, 4, 1, 0]),
            ("b.a.foo.com", &[3, 1, 0]),
            ("foo.com", &[0]),
            ("evilfoo.com", &[0]),
            ("com", &[]),
            ("foo.com.evil", &[]),
        ] {
            let name = HostName::parse(name).expect("a name");
            assert_eq!(index.matches(&name).collect::<Vec<_>>(), expected, "{name}");
        }
    }

    #[test]
    fn http_6_partial_wildcards_match_by_text() {
        let index = index(&["*post.com"]);
        for (name, expected) in
            [("washingtonpost.com", true), ("a.post.com", true), ("post.com", false)]
        {
            let host = HostName::parse(name).expect("a name");
            assert_eq!(index.matches(&host).next().is_some(), expected, "{name}");
        }
    }

    #[test]
    fn http_2_the_longer_suffix_wins_partial_or_not() {
        let index = index(&["*.com", "*post.com", "*.post.com"]);
        for (name, expected) in [("a.post.com", &[2, 1, 0][..]), ("xpost.com", &[1, 0])] {
            let host = HostName::parse(name).expect("a name");
            assert_eq!(index.matches(&host).collect::<Vec<_>>(), expected, "{name}");
        }
    }

    #[test]
    fn sev_1_and_sev_3_refused_hosts() {
        for host in [
            "*", "", "a.*.com", "*.*.com", "*.", "a..b", "1.2.3.4", "a b.com", "é.com", "-a.com",
            "a-.com", "a_b.com", "*.-a.com", "*--a.com", "*-.com",
        ] {
            assert!(EntryHost::parse(host).is_err(), "{host:?}");
        }
        for host in ["a-b.com", "xn--exmple-cua.com", "*-a.com", "1a.b2"] {
            assert!(EntryHost::parse(host).is_ok(), "{host:?}");
        }
    }
}
