//! Which host a request is for: HTTP-1, HTTP-5, HTTP-7, HTTP-8, MESH-29, LIS-18, T-30, T-36.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use interceptor::policy::Enforcement;

use crate::observe::Seen;
use crate::registry::Host;
use crate::world::Head;

/// The host, or the answer that the request gets without one.
pub(crate) fn host(head: &Head, dst: SocketAddr, profile: Enforcement) -> Result<Host, Seen> {
    let strict = profile == Enforcement::Strict;
    let answer = |status, close| Seen::Reply { status, explain: strict, close, route: None };
    if head.version == 10 {
        return Err(answer(426, true));
    }
    if head.method == "CONNECT" {
        return Err(if strict { answer(403, true) } else { answer(404, false) });
    }
    effective(head, dst, strict).ok_or_else(|| answer(400, true))
}

fn effective(head: &Head, dst: SocketAddr, strict: bool) -> Option<Host> {
    let http2 = head.version == 20;
    // HTTP-8: HTTP/1.1 has one Host, whatever else it says; HTTP/2 may have :authority alone.
    if head.hosts.len() > 1 || (head.hosts.is_empty() && (!http2 || head.authority.is_none())) {
        return None;
    }
    let header = match head.hosts.first() {
        Some(text) => Some(read(text, strict)?),
        None => None,
    };
    let authority = match &head.authority {
        Some(text) => Some(read(text, strict)?),
        None => None,
    };
    let port = |host: &Host| host.port.unwrap_or(dst.port());
    if let (Some(a), Some(b)) = (&authority, &header)
        && (strict || http2)
        && (&a.name, a.ip, port(a)) != (&b.name, b.ip, port(b))
    {
        return None;
    }
    let host = authority.or(header)?;
    if strict && (port(&host) != dst.port() || host.ip.is_some_and(|ip| ip != dst.ip())) {
        return None;
    }
    Some(host)
}

/// One name or one address, and perhaps a port.
fn read(text: &str, strict: bool) -> Option<Host> {
    let end = if text.starts_with('[') {
        text.find(']')? + 1
    } else {
        text.find(':').unwrap_or(text.len())
    };
    let (host, rest) = text.split_at(end);
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return None,
        Some(port) => Some(read_port(port)?),
    };
    if let Some(literal) = host.strip_prefix('[') {
        let literal = literal.strip_suffix(']')?;
        let ip: Ipv6Addr = literal.parse().ok()?;
        if strict && literal.to_lowercase() != ip.to_string() {
            return None;
        }
        return Some(Host { name: None, ip: Some(IpAddr::V6(ip).to_canonical()), port });
    }
    if let Ok(ip) = host.parse() {
        return Some(Host { name: None, ip: Some(IpAddr::V4(ip)), port });
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_lowercase();
    let labels: Vec<&str> = name.split('.').collect();
    let good = |label: &&str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    // T-20, T-30: other forms of addresses are no names.
    let last = labels.last()?;
    let number = last.chars().all(|c| c.is_ascii_digit()) || last.starts_with("0x");
    (name.len() <= 253 && labels.iter().all(good) && !number).then_some(Host {
        name: Some(name),
        ip: None,
        port,
    })
}

fn read_port(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.chars().all(|c| c.is_ascii_digit());
    if digits { text.parse().ok().filter(|port| *port != 0) } else { None }
}
