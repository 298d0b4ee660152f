//! What is asked: a URL or HOST:PORT read as the connection that a client would make of it.

use std::net::{IpAddr, SocketAddr};

use crate::decide::host::HostName;
use crate::sniff::{ClientHello, Hello};

/// The connection in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What the client sends first.
    pub first: FirstBytes,
    /// The host as it was written; what the client puts into Host or SNI.
    pub host: Peer,
    /// The port that it dials.
    pub port: u16,
    /// Path and query of an HTTP request.
    pub path: String,
    /// Where it dials, if that is known.
    pub dst: Option<SocketAddr>,
}

/// Whom the client means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A name.
    Name(HostName),
    /// An address: TLS then carries no SNI.
    Ip(IpAddr),
}

/// What a client sends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstBytes {
    /// A plaintext HTTP/1.1 request.
    Http1,
    /// Plaintext HTTP/2 with prior knowledge.
    H2c,
    /// A TLS ClientHello.
    Tls,
    /// Bytes of another protocol.
    Raw,
    /// Nothing: the server speaks first.
    None,
}

/// Why a text is no question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQuestion {
    /// The scheme is not one of those known.
    #[error("{0}: is not a scheme known here; use http, https, h2c, tls, tcp or server-first")]
    Scheme(String),
    /// No port, and none that the scheme implies.
    #[error("{0} names no port; write HOST:PORT")]
    NoPort(String),
    /// The port is not a number from 1 to 65535.
    #[error("{0} is not a port")]
    Port(String),
    /// The host is neither a name nor an address.
    #[error("{host}: {why}")]
    Host {
        /// The text.
        host: String,
        /// What it breaks.
        why: &'static str,
    },
    /// `--dst` is neither an address nor address and port.
    #[error("{0} is not an address; write IP or IP:PORT, IPv6 with port as [2001:db8::1]:443")]
    Dst(String),
}

impl FirstBytes {
    /// The word that scenario files use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2c => "h2c",
            Self::Tls => "tls",
            Self::Raw => "raw",
            Self::None => "none",
        }
    }

    /// Whether its requests are judged one by one where the port is served as HTTP.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::H2c)
    }
}

impl Question {
    /// Reads `URL|HOST:PORT` and the dialled address, `IP` or `IP:PORT`. Without a scheme port 443
    /// means TLS, 80 and 8080 mean HTTP, and every other port plain bytes.
    ///
    /// # Errors
    /// [`BadQuestion`].
    pub fn parse(text: &str, dst: Option<&str>) -> Result<Self, BadQuestion> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(at) if rest[at..].starts_with('/') => (&rest[..at], rest[at..].to_owned()),
            Some(at) => (&rest[..at], format!("/{}", &rest[at..])),
            None => (rest, "/".to_owned()),
        };
        let path = path.split('#').next().unwrap_or("/").to_owned();
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = split_port(authority)?;
        let (first, default) = match scheme.as_deref() {
            Some("http" | "ws") => (Some(FirstBytes::Http1), Some(80)),
            Some("h2c" | "grpc") => (Some(FirstBytes::H2c), Some(80)),
            Some("https" | "wss" | "tls") => (Some(FirstBytes::Tls), Some(443)),
            Some("tcp") => (Some(FirstBytes::Raw), None),
            Some("server-first") => (Some(FirstBytes::None), None),
            Some(other) => return Err(BadQuestion::Scheme(other.to_owned())),
            None => (None, None),
        };
        let port = port.or(default).ok_or_else(|| BadQuestion::NoPort(text.to_owned()))?;
        let first = first.unwrap_or(match port {
            443 => FirstBytes::Tls,
            80 | 8080 => FirstBytes::Http1,
            _ => FirstBytes::Raw,
        });
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => Peer::Ip(ip.to_canonical()),
            Err(_) => Peer::Name(
                HostName::parse(host)
                    .map_err(|error| BadQuestion::Host { host: host.to_owned(), why: error.0 })?,
            ),
        };
        let dst = match (dst, &host) {
            (Some(dst), _) => Some(parse_dst(dst, port)?),
            (None, Peer::Ip(ip)) => Some(SocketAddr::new(*ip, port)),
            (None, Peer::Name(_)) => None,
        };
        let port = dst.map_or(port, |dst| dst.port());
        Ok(Self { first, host, port, path, dst })
    }

    /// The name that the client shows, if it shows one.
    pub fn name(&self) -> Option<&HostName> {
        match &self.host {
            Peer::Name(name) => Some(name),
            Peer::Ip(_) => None,
        }
    }

    /// What a sniffer would make of the first bytes.
    pub fn hello(&self) -> Hello {
        match self.first {
            FirstBytes::Http1 => Hello::Http1,
            FirstBytes::H2c => Hello::Http2,
            FirstBytes::Tls => {
                Hello::Tls(ClientHello { sni: self.name().cloned(), ..ClientHello::default() })
            }
            FirstBytes::Raw => Hello::Opaque,
            FirstBytes::None => Hello::Silent,
        }
    }

    /// The Host header or `:authority` that a client would send.
    pub fn authority(&self) -> String {
        let host = match &self.host {
            Peer::Name(name) => name.to_string(),
            Peer::Ip(IpAddr::V4(ip)) => ip.to_string(),
            Peer::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
        };
        if self.port == 80 { host } else { format!("{host}:{}", self.port) }
    }
}

/// `host[:port]`, IPv6 literals in brackets or, without a port, bare.
fn split_port(authority: &str) -> Result<(&str, Option<u16>), BadQuestion> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => Err(BadQuestion::Port(text.to_owned())),
    };
    if let Some(rest) = authority.strip_prefix('[')
        && let Some((literal, tail)) = rest.split_once(']')
    {
        return match tail.strip_prefix(':') {
            Some(text) => Ok((literal, port(text)?)),
            None if tail.is_empty() => Ok((literal, None)),
            None => Err(BadQuestion::Port(tail.to_owned())),
        };
    }
    match authority.split_once(':') {
        // Two colons without brackets: an IPv6 address.
        Some((_, tail)) if tail.contains(':') => Ok((authority, None)),
        Some((host, text)) => Ok((host, port(text)?)),
        None => Ok((authority, None)),
    }
}

fn parse_dst(text: &str, port: u16) -> Result<SocketAddr, BadQuestion> {
    let parsed = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)))
        .map_err(|_| BadQuestion::Dst(text.to_owned()))?;
    if parsed.port() == 0 {
        return Err(BadQuestion::Dst(text.to_owned()));
    }
    Ok(SocketAddr::new(parsed.ip().to_canonical(), parsed.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_host_ports() {
        for (text, dst, first, authority, port, path, dialled) in [
            ("http://a.test/x?y=1#z", None, "http1", "a.test", 80, "/x?y=1", None),
            ("http://a.test:8080", None, "http1", "a.test:8080", 8080, "/", None),
            ("http://u:p@a.test?q", None, "http1", "a.test", 80, "/?q", None),
            ("HTTPS://A.Test.", None, "tls", "a.test:443", 443, "/", None),
            ("h2c://a.test:50051/s/m", None, "h2c", "a.test:50051", 50051, "/s/m", None),
            ("tcp://a.test:443", None, "raw", "a.test:443", 443, "/", None),
            ("server-first://a.test:25", None, "none", "a.test:25", 25, "/", None),
            ("a.test:443", None, "tls", "a.test:443", 443, "/", None),
            ("a.test:80", None, "http1", "a.test", 80, "/", None),
            ("a.test:5432", None, "raw", "a.test:5432", 5432, "/", None),
            ("a.test:80", Some("192.0.2.1"), "http1", "a.test", 80, "/", Some("192.0.2.1:80")),
            (
                "a.test:80",
                Some("192.0.2.1:81"),
                "http1",
                "a.test:81",
                81,
                "/",
                Some("192.0.2.1:81"),
            ),
            (
                "a.test:80",
                Some("::ffff:192.0.2.1"),
                "http1",
                "a.test",
                80,
                "/",
                Some("192.0.2.1:80"),
            ),
            ("[2001:db8::1]:80", None, "http1", "[2001:db8::1]", 80, "/", Some("[2001:db8::1]:80")),
            ("https://192.0.2.1", None, "tls", "192.0.2.1:443", 443, "/", Some("192.0.2.1:443")),
        ] {
            let asked = Question::parse(text, dst).unwrap_or_else(|e| panic!("{text}: {e}"));
            let got = (asked.first.word(), asked.authority(), asked.port, asked.path.as_str());
            assert_eq!(got, (first, authority.to_owned(), port, path), "{text}");
            assert_eq!(asked.dst.map(|dst| dst.to_string()).as_deref(), dialled, "{text}");
        }
    }

    #[test]
    fn what_is_no_question() {
        for (text, dst) in [
            ("a.test", None),
            ("ftp://a.test", None),
            ("a.test:0", None),
            ("a.test:http", None),
            ("a.test:99999", None),
            ("http://a..test", None),
            ("http://", None),
            ("tcp://a.test", None),
            ("a.test:80", Some("a.test")),
            ("a.test:80", Some("192.0.2.1:0")),
            ("[::1]x:80", None),
        ] {
            assert!(Question::parse(text, dst).is_err(), "{text} {dst:?}");
        }
    }
}
