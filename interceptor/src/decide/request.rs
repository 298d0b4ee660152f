//! Which host an HTTP request is for (HTTP-1, HTTP-5, HTTP-7, HTTP-8, T-30, T-36). Read once, by
//! one set of rules, or refused.

use std::net::{IpAddr, SocketAddr};

use super::RequestHead;
use super::host::HostName;
use crate::policy::Enforcement;

/// A request's effective host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// A name.
    Name(HostName),
    /// An IP literal in canonical form.
    Ip(IpAddr),
}

impl Host {
    /// The name, if it is one.
    pub(super) fn name(&self) -> Option<&HostName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Ip(_) => None,
        }
    }
}

/// Host is missing, ambiguous, or unreadable: 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadHost;

/// The effective host of `head` on a connection to `dst`, and the port given with it.
pub(super) fn effective_host(
    head: &RequestHead<'_>,
    dst: SocketAddr,
    profile: Enforcement,
) -> Result<(Host, Option<u16>), BadHost> {
    let strict = profile == Enforcement::Strict;
    let header = match head.hosts {
        [] => None,
        [one] => Some(parse(one, strict)?),
        _ => return Err(BadHost),
    };
    let authority = head.authority.map(|text| parse(text, strict)).transpose()?;
    let (host, port) = match (authority, header) {
        // HTTP/1.1 demands a Host header whatever the target says (HTTP-8, RFC 9112 3.2).
        (_, None) if head.version < 20 => return Err(BadHost),
        (None, None) => return Err(BadHost),
        (None, Some(header)) => header,
        (Some(authority), None) => authority,
        (Some(authority), Some(header)) => {
            let same = authority.0 == header.0
                && authority.1.unwrap_or(dst.port()) == header.1.unwrap_or(dst.port());
            if !same && (strict || head.version >= 20) {
                return Err(BadHost);
            }
            authority
        }
    };
    if strict {
        if port.is_some_and(|port| port != dst.port()) {
            return Err(BadHost);
        }
        if matches!(host, Host::Ip(ip) if ip != dst.ip()) {
            return Err(BadHost);
        }
    }
    Ok((host, port))
}

/// The one form of `host[:port]` that is passed on: the name in lower case without a trailing dot,
/// an address as it is written canonically, the port as it was given. `None` for what is no host, or
/// more than one. Who reads this again reads what was judged (R4, T-20).
pub fn canonical_host(text: &str) -> Option<String> {
    let (host, port) = parse(text, false).ok()?;
    let host = match host {
        Host::Name(name) => name.to_string(),
        Host::Ip(IpAddr::V4(ip)) => ip.to_string(),
        Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
    };
    Some(match port {
        Some(port) => format!("{host}:{port}"),
        None => host,
    })
}

/// Reads `host[:port]`: one name or one canonical IP literal, nothing else.
fn parse(text: &str, strict: bool) -> Result<(Host, Option<u16>), BadHost> {
    if let Some(rest) = text.strip_prefix('[') {
        let (literal, tail) = rest.split_once(']').ok_or(BadHost)?;
        let port = match tail.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if tail.is_empty() => None,
            None => return Err(BadHost),
        };
        let ip: std::net::Ipv6Addr = literal.parse().map_err(|_| BadHost)?;
        if strict && ip.to_string() != literal.to_ascii_lowercase() {
            return Err(BadHost);
        }
        return Ok((Host::Ip(IpAddr::V6(ip).to_canonical()), port));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(parse_port(port)?)),
        None => (text, None),
    };
    // std reads only the canonical dotted form: no leading zeros, no short forms, no hex.
    if let Ok(ip) = name.parse::<std::net::Ipv4Addr>() {
        return Ok((Host::Ip(IpAddr::V4(ip)), port));
    }
    Ok((Host::Name(HostName::parse(name).map_err(|_| BadHost)?), port))
}

/// 1 to 5 digits, 1 to 65535; `+80` and the like are not ports.
fn parse_port(text: &str) -> Result<u16, BadHost> {
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadHost);
    }
    text.parse().ok().filter(|port| *port > 0).ok_or(BadHost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(authority: Option<&str>, hosts: &[&str], profile: Enforcement) -> Option<String> {
        let head =
            RequestHead { method: "GET", authority, hosts, path: "/", version: 11, headers: &() };
        let dst = "203.0.113.1:80".parse().expect("an address");
        effective_host(&head, dst, profile).ok().map(|(host, _)| match host {
            Host::Name(name) => name.to_string(),
            Host::Ip(ip) => ip.to_string(),
        })
    }

    #[test]
    fn t_30_and_http_1_hosts() {
        // authority, Host headers, strict, istio
        type Row = (
            Option<&'static str>,
            &'static [&'static str],
            Option<&'static str>,
            Option<&'static str>,
        );
        let table: &[Row] = &[
            (None, &["a.com"], Some("a.com"), Some("a.com")),
            (None, &["A.Com."], Some("a.com"), Some("a.com")),
            (None, &["a.com:80"], Some("a.com"), Some("a.com")),
            (None, &["a.com:9999"], None, Some("a.com")),
            (None, &[], None, None),
            (None, &["a.com", "a.com"], None, None),
            (None, &[""], None, None),
            (None, &["a.com,b.com"], None, None),
            (None, &["user@a.com"], None, None),
            (None, &["a.com/x"], None, None),
            (None, &["a.com?x"], None, None),
            (None, &["a.com#x"], None, None),
            (None, &["[a.com]"], None, None),
            (None, &["a.com:"], None, None),
            (None, &["a.com:x"], None, None),
            (None, &["a.com:+80"], None, None),
            (None, &["a.com:0"], None, None),
            (None, &["a.com:99999"], None, None),
            (None, &["a.com:80:80"], None, None),
            (None, &["a..com"], None, None),
            (None, &["a.com.."], None, None),
            (None, &["a b.com"], None, None),
            (None, &["203.0.113.1"], Some("203.0.113.1"), Some("203.0.113.1")),
            (None, &["203.0.113.1:80"], Some("203.0.113.1"), Some("203.0.113.1")),
            (None, &["203.0.113.2"], None, Some("203.0.113.2")),
            (None, &["203.0.113.01"], None, None),
            (None, &["0xcb.0x0.0x71.0x1"], None, None),
            (None, &["3405803777"], None, None),
            (None, &["[::ffff:203.0.113.1]"], Some("203.0.113.1"), Some("203.0.113.1")),
            (None, &["[::FFFF:CB00:7101]"], None, Some("203.0.113.1")),
            (None, &["::1"], None, None),
            (Some("a.com"), &["a.com"], Some("a.com"), Some("a.com")),
            (Some("a.com"), &["a.com:80"], Some("a.com"), Some("a.com")),
            (Some("a.com"), &["b.com"], None, Some("a.com")),
            (Some("a.com:81"), &["a.com"], None, Some("a.com")),
            (Some("a.com"), &[], None, None),
            (Some("u@a.com"), &["a.com"], None, None),
        ];
        for (authority, hosts, strict, istio) in table {
            let row = format!("{authority:?} {hosts:?}");
            assert_eq!(host(*authority, hosts, Enforcement::Strict).as_deref(), *strict, "{row}");
            assert_eq!(host(*authority, hosts, Enforcement::Istio).as_deref(), *istio, "{row}");
        }
    }

    #[test]
    fn r_4_and_t_20_canonical_hosts() {
        for (sent, passed_on) in [
            ("a.com", Some("a.com")),
            ("A.Com.", Some("a.com")),
            ("a.com:80", Some("a.com:80")),
            ("A.com.:0080", Some("a.com:80")),
            ("203.0.113.1:81", Some("203.0.113.1:81")),
            ("[2001:DB8:0::1]:80", Some("[2001:db8::1]:80")),
            ("[::ffff:203.0.113.1]", Some("203.0.113.1")),
            ("a.com..", None),
            ("a.com,b.com", None),
            ("u@a.com", None),
            ("", None),
        ] {
            assert_eq!(canonical_host(sent).as_deref(), passed_on, "{sent}");
        }
    }

    #[test]
    fn t_36_http_2_authority_and_host_agree_in_both_profiles() {
        let dst = "203.0.113.1:80".parse().expect("an address");
        for profile in [Enforcement::Strict, Enforcement::Istio] {
            let head = |hosts| RequestHead {
                method: "GET",
                authority: Some("a.com"),
                hosts,
                path: "/",
                version: 20,
                headers: &(),
            };
            assert!(effective_host(&head(&[]), dst, profile).is_ok());
            assert!(effective_host(&head(&["a.com"]), dst, profile).is_ok());
            assert_eq!(effective_host(&head(&["b.com"]), dst, profile), Err(BadHost));
        }
    }
}
