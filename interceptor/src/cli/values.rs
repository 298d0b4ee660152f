//! Values of options: text to what it means.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output, written `-`.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

/// A network or one address. IPv4 written as IPv6 (`::ffff:192.0.2.0/120`) becomes IPv4, as
/// destinations do.
///
/// # Errors
/// Not a network, or bits are set beyond the prefix; says what to write instead.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| {
            "not a network; write one like 203.0.113.0/24, 2001:db8::/32 or 203.0.113.7".to_owned()
        })?,
    };
    let trunc = net.trunc();
    if trunc != net {
        return Err(format!("{text} has host bits set; write {trunc}"));
    }
    let IpNet::V6(v6) = net else { return Ok(net) };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(prefix)) => {
            Ipv4Net::new(v4, prefix).map(IpNet::V4).map_err(|error| error.to_string())
        }
        _ => Ok(net),
    }
}

/// A DNS server: an address, with port 53 unless given.
pub(super) fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let address = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| {
            "not an address; write one like 192.0.2.53, 192.0.2.53:5353, 2001:db8::53 or \
             [2001:db8::53]:5353"
                .to_owned()
        })?;
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("{text} cannot be a DNS server"));
    }
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// An address of this machine's own, by which others know it.
pub(super) fn parse_own(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr =
        text.parse().map_err(|_| "not an address; write one like 192.0.2.10".to_owned())?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(format!("{text} stands for no one address; name the one that is dialled"));
    }
    Ok(address.to_canonical())
}

/// A name: it becomes part of paths, so nothing else may be in it.
pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(text.to_owned()) } else { Err("1 to 32 of a-z, 0-9 and -".to_owned()) }
}

/// A namespace, as Kubernetes names them.
pub(crate) fn parse_namespace(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits { Ok(text.to_owned()) } else { Err("1 to 63 of a-z, 0-9 and -".to_owned()) }
}

/// A label; its value may be empty.
pub(super) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not a label; write KEY=VALUE".to_owned()),
    }
}

/// A file, or `-`.
#[expect(clippy::unnecessary_wraps, reason = "the form that a clap value parser has")]
pub(super) fn parse_log_target(text: &str) -> Result<LogTarget, String> {
    Ok(if text == "-" { LogTarget::Stdout } else { LogTarget::File(text.into()) })
}
