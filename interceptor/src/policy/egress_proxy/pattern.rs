//! What a rule is for: hosts and networks as people write them.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::decide::door::{Pattern, What};
use crate::decide::host::HostName;
use crate::decide::pattern::EntryHost;

/// How a name without a wildcard is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Itself, as in `hosts` of a ServiceEntry.
    Hosts,
    /// Itself and everything below it, as in NO_PROXY.
    NoProxy,
}

/// Reads `*`, `a.com`, `*.a.com`, `.a.com`, `192.0.2.1`, `192.0.2.0/24`, `[2001:db8::1]`; each but a
/// network also with `:PORT`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str, dialect: Dialect) -> Result<Pattern, String> {
    let network = |network: IpNet, port| Pattern { what: What::Network(network), port };
    if text.contains('/') {
        let read = text.parse::<IpNet>().map_err(|_| "not a network; write it like 10.0.0.0/8")?;
        return Ok(network(read.trunc(), None));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(network(IpNet::from(ip.to_canonical()), None));
    }
    let (host, port) = split_port(text)?;
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Ok(ip) = literal.unwrap_or(host).parse::<IpAddr>() {
        return Ok(network(IpNet::from(ip.to_canonical()), port));
    }
    let what = match (host.strip_prefix('.'), dialect) {
        _ if host == "*" => What::Any,
        (Some(parent), _) => What::Host(EntryHost::Wildcard(name(parent)?)),
        (None, Dialect::NoProxy) if !host.starts_with('*') => What::Domain(name(host)?),
        (None, _) => match EntryHost::parse(host).map_err(|why| why.0)? {
            EntryHost::Partial(_) => {
                return Err("a wildcard is a whole label; write it like *.example.com".into());
            }
            host => What::Host(host),
        },
    };
    Ok(Pattern { what, port })
}

fn name(text: &str) -> Result<HostName, String> {
    HostName::parse(text).map_err(|why| why.0.to_owned())
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
        return Ok((text, None));
    };
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((host, Some(port))),
        _ => Err("the port must lie between 1 and 65535".to_owned()),
    }
}
