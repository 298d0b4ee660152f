//! How an upstream behaves, in the format's closed vocabulary.

use std::time::Duration;

use anyhow::{Context, Result};

/// How the upstream behaves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Its special behaviour.
    pub server: Server,
    /// How long it takes to answer.
    pub delay: Duration,
    /// Whether it speaks first.
    pub speaks_first: bool,
}

/// Special behaviours, as the format's vocabulary has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Server {
    /// Accepts, answers 200, trusted certificate for the name asked.
    #[default]
    Usual,
    /// `301 to https on port 80`.
    Redirects,
    /// `requires a client certificate`.
    WantsCertificate,
    /// `presents a valid chain for NAME`.
    OtherName(String),
    /// `self-signed certificate`.
    SelfSigned,
    /// `certificate listed in the CRL`.
    Revoked,
    /// `refuses connections`.
    Refuses,
    /// `drops SYN`.
    Silent,
}

impl Server {
    /// Reads a `server` of the format.
    ///
    /// # Errors
    /// With the text when it is not in the vocabulary.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        Ok(match text {
            None => Self::Usual,
            Some("301 to https on port 80") => Self::Redirects,
            Some("requires a client certificate") => Self::WantsCertificate,
            Some("self-signed certificate") => Self::SelfSigned,
            Some("certificate listed in the CRL") => Self::Revoked,
            Some("refuses connections") => Self::Refuses,
            Some("drops SYN") => Self::Silent,
            Some(other) => {
                let name = other.strip_prefix("presents a valid chain for ");
                Self::OtherName(name.with_context(|| format!("no server is `{other}`"))?.to_owned())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_is_closed() {
        assert_eq!(Server::parse(None).expect("usual"), Server::Usual);
        let other = Server::parse(Some("presents a valid chain for a.test")).expect("a name");
        assert_eq!(other, Server::OtherName("a.test".into()));
        assert!(Server::parse(Some("is friendly")).is_err());
    }
}
