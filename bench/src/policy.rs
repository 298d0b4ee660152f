//! Policies for interceptor, as text.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::scenario::Service;

/// The domain of the hosts of large policies.
pub(crate) const PARENT: &str = "hosts.bench";

/// One host of a large policy.
pub(crate) fn host(number: usize) -> String {
    format!("host-{number}.{PARENT}")
}

/// Its address; each host has its own. (198.18.0.0/15 is for benchmarks, RFC 2544.)
pub(crate) fn address(number: usize) -> Ipv4Addr {
    let first = u32::from(Ipv4Addr::new(198, 18, 1, 0));
    Ipv4Addr::from(first + u32::try_from(number).unwrap_or_default())
}

/// The entries that allow all services.
pub(crate) fn services() -> String {
    let tcp = Service::Tcp;
    let opaque = format!("  resolution: NONE\n  addresses: [{}]\n", tcp.address());
    let both = format!(
        "  ports:\n  - number: 80\n    name: http\n    protocol: HTTP\n    targetPort: 443\n  \
         - number: 443\n    name: https\n    protocol: HTTPS\n  resolution: DNS\n---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: originate\n\
         spec:\n  host: {}\n  trafficPolicy:\n    portLevelSettings:\n    - port:\n        \
         number: 80\n      tls:\n        mode: SIMPLE\n",
        Service::Originate.host()
    );
    [
        entry("tls", Service::Tls.host(), &port(Service::Tls, "TLS", DNS)),
        entry("tcp", tcp.host(), &port(tcp, "TCP", &opaque)),
        entry("http", Service::Http.host(), &port(Service::Http, "HTTP", DNS)),
        entry("originate", Service::Originate.host(), &both),
    ]
    .concat()
}

/// Entries for so many TLS hosts, each with a name of its own.
pub(crate) fn hosts(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        text += &entry(&format!("host-{number}"), &host(number), &port(Service::Tls, "TLS", DNS));
    }
    text
}

const DNS: &str = "  resolution: DNS\n";

fn port(service: Service, protocol: &str, more: &str) -> String {
    let number = service.port();
    format!("  ports:\n  - number: {number}\n    name: port\n    protocol: {protocol}\n{more}")
}

fn entry(name: &str, host: &str, rest: &str) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {name}\n\
         spec:\n  hosts:\n  - {host}\n{rest}"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_policy_has_each_host_once() {
        let text = hosts(12);
        assert_eq!(text.matches("kind: ServiceEntry").count(), 12);
        assert_eq!(text.matches(&format!("  - {}\n", host(11))).count(), 1);
        assert!(!text.contains(&host(12)));
        assert_eq!(address(300).to_string(), "198.18.2.44");
    }
}
