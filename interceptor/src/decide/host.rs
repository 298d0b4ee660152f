//! Host names in normal form, and the patterns that match them (HTTP-4, HTTP-5, T-20, T-22).

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A DNS host name in normal form: lower case, no trailing dot, every label 1 to 63 bytes, 253 in
/// all, only letters, digits, `-` and `_`. An IP literal is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Reads `text` as a host name, folding case and dropping one trailing dot.
    ///
    /// # Errors
    /// [`BadHostName`] names the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, BadHostName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(BadHostName("host name is empty"));
        }
        if text.len() > 253 {
            return Err(BadHostName("host name is longer than 253 bytes"));
        }
        if looks_like_ip(text) {
            return Err(BadHostName("host name is an IP address"));
        }
        for label in text.split('.') {
            if label.is_empty() {
                return Err(BadHostName("host name has an empty label"));
            }
            if label.len() > 63 {
                return Err(BadHostName("host name has a label longer than 63 bytes"));
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err(BadHostName(
                    "host name has a character outside letters, digits, '-' and '_'",
                ));
            }
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether every label is one by RFC 1123: no `_`, no `-` at its ends. Clients show other names
    /// as well, resources may not (SEV-1).
    pub fn is_rfc_1123(&self) -> bool {
        !self.0.contains('_')
            && self.0.split('.').all(|label| !label.starts_with('-') && !label.ends_with('-'))
    }

    /// Every proper parent of this name, the longest first: `b.test` and `test` for `a.b.test`.
    ///
    /// These are the suffixes whose [`HostPattern::Wildcard`] matches this name, in the order in
    /// which HTTP-2 prefers them, so a map keyed by suffix answers the most specific wildcard first.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(parent(&self.0), |name| parent(name))
    }
}

/// What follows the first dot.
fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, rest)| rest)
}

/// A map keyed by names is asked with plain text, for instance a [parent](HostName::parents).
impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is some form of an IP address, the lax ones of inet_aton included: a name whose
/// last label is all digits or 0x-hex never names a host.
fn looks_like_ip(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or(text);
    let digits = |s: &str, hex: bool| {
        !s.is_empty()
            && s.bytes().all(|b| if hex { b.is_ascii_hexdigit() } else { b.is_ascii_digit() })
    };
    text.contains(':')
        || digits(last, false)
        || last
            .strip_prefix("0x")
            .or(last.strip_prefix("0X"))
            .is_some_and(|h| h.is_empty() || digits(h, true))
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a host name: a whole, stable phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadHostName(pub &'static str);

#[cfg(test)]
mod tests;
