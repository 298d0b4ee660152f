//! The node at the other end of a connection, by the certificate that it showed.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConnection;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A node whose certificate was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its URIs and DNS names. What stands in the common name counts for nothing.
    pub(super) identities: Vec<String>,
    /// Until when it holds, in seconds since 1970.
    not_after: i64,
}

impl Peer {
    /// Who is at the other end; `None`: nobody who has a name.
    pub(super) fn of(connection: &ServerConnection) -> Option<Self> {
        let leaf = connection.peer_certificates()?.first()?;
        let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
        let names = leaf.subject_alternative_name().ok()??;
        let identities: Vec<_> = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(name) | GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect();
        let not_after = leaf.validity().not_after.timestamp();
        (!identities.is_empty()).then_some(Self { identities, not_after })
    }

    /// Whether the certificate has expired since the handshake.
    pub(super) fn has_expired(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        i64::try_from(now).is_ok_and(|now| now > self.not_after)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_does_not_outlive_itself() {
        let peer = Peer { identities: vec!["a".into()], not_after: 1000 };
        let at = |second| UNIX_EPOCH + Duration::from_secs(second);
        assert!(!peer.has_expired(at(1000)) && peer.has_expired(at(1001)));
    }
}
