//! What a record has to carry besides what every record has: the headers that a format prints or a
//! filter asks for, and what certificates say.

use std::collections::BTreeSet;

use http::HeaderMap;

use super::operators::Head;
use super::values::ALWAYS_THERE;

/// What the log in force asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Of the request, as received.
    pub request: Names,
    /// Of the response, as sent to the client.
    pub response: Names,
    /// Of the response's trailers.
    pub trailers: Names,
    /// Anything about TLS towards the upstream: reading certificates takes a while.
    pub tls: bool,
}

/// Names of headers, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    all: bool,
    names: BTreeSet<String>,
}

impl Names {
    /// Whether none is wanted, the usual case.
    pub fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty()
    }

    /// The wanted ones of `headers`, each with its values joined by commas; bytes that are no text
    /// become U+FFFD.
    pub fn pick(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        if self.is_empty() {
            return Vec::new();
        }
        let wanted = |name: &str| self.all || self.names.contains(name);
        let value = |name: &http::HeaderName| {
            let texts: Vec<_> = headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            (name.as_str().to_owned(), texts.join(","))
        };
        headers.keys().filter(|name| wanted(name.as_str())).map(value).collect()
    }
}

impl Wanted {
    /// Asks for a header, unless every record has it anyway.
    pub(super) fn add(&mut self, head: Head, name: &str) {
        if !ALWAYS_THERE.contains(&name) {
            self.of(head).names.insert(name.to_owned());
        }
    }

    /// Asks for every header of a kind.
    pub(super) fn add_all(&mut self, head: Head) {
        self.of(head).all = true;
    }

    fn of(&mut self, head: Head) -> &mut Names {
        match head {
            Head::Request => &mut self.request,
            Head::Response => &mut self.response,
            Head::Trailer => &mut self.trailers,
        }
    }
}
