//! A random policy: each port has one of its own, with the addresses and names that its flows use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use interceptor::policy::{Enforcement, Outbound};
use interceptor_tests::hellos::{HONEST, HOSTILE, Random};
use interceptor_tests::probe::{Case, How};

use super::resources::{self, Host};

/// The first of the ports, but for [`HTTPS`].
const FIRST_PORT: u16 = 2000;
/// How many there are.
const PORTS: u8 = 32;
/// The port on which names are noticed from the first connection on (MESH-21).
const HTTPS: u16 = 443;
/// How many addresses a name has, of each family: an answer fits in a datagram.
const ADDRESSES: u8 = 12;
/// Those of them that only honest clients dial: the kernel gives the others to the proxy, once it met
/// there what it cannot read.
const HONEST_ADDRESSES: u8 = 8;
/// Third numbers of addresses that no entry has: those that flows meet once, and the port's one that
/// was dialled before.
const NOBODYS: u8 = 250;
const VISITED: u8 = 251;

/// Of an entry whose clients may not hide names (T-26).
const NO_ECH: &str = ", annotations: {egress.interceptor.io/ech: forbid}";

/// Whose rules hold, and what becomes of what no entry claims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) enforcement: Enforcement,
    pub(crate) outbound: Outbound,
}

/// Resources, names' addresses, and what flows may use of them.
pub(crate) struct Plan {
    pub(crate) yaml: String,
    pub(crate) zone: Vec<(String, Vec<IpAddr>)>,
    entries: Vec<Entry>,
    /// Ports of which nothing is said, by their numbers.
    open: Vec<u8>,
}

/// One ServiceEntry, as far as flows look at it.
struct Entry {
    /// Number of its port.
    at: u8,
    /// Of the port's entries.
    number: u8,
    /// A name that it allows.
    name: String,
    /// Whether its addresses are those of its name.
    by_dns: bool,
}

/// What the entries of a port are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Theme {
    /// Of every kind.
    Mixed,
    /// Opaque, with addresses: no byte matters there.
    Opaque,
}

pub(crate) fn ports() -> Vec<u16> {
    (0..PORTS).map(port).collect()
}

fn port(at: u8) -> u16 {
    match at {
        0 => HTTPS,
        _ => FIRST_PORT + u16::from(at),
    }
}

impl Plan {
    pub(crate) fn new(random: &mut Random, mode: Mode) -> Self {
        let mut plan =
            Self { yaml: String::new(), zone: Vec::new(), entries: Vec::new(), open: Vec::new() };
        for at in 0..PORTS {
            // Where unknown traffic passes, most of it is on ports that leave it alone.
            let theme = match random.below(3) {
                _ if mode.outbound == Outbound::RegistryOnly => Theme::Mixed,
                0 => Theme::Mixed,
                1 => Theme::Opaque,
                _ => {
                    plan.open.push(at);
                    continue;
                }
            };
            let mut hosts = Vec::new();
            for number in 0..1 + random.below(4) as u8 {
                hosts.push(plan.add(random, at, number, theme, mode));
            }
            if theme == Theme::Mixed && random.percent(50) {
                let kind = random.below(resources::KINDS);
                plan.yaml += &resources::more(random, kind, port(at), &hosts);
            }
        }
        if random.percent(50) {
            plan.yaml += &resources::sidecar(random);
        }
        plan
    }

    fn add(&mut self, random: &mut Random, at: u8, number: u8, theme: Theme, mode: Mode) -> Host {
        let port = port(at);
        let [own, v6] = networks(at, number);
        // Half of another entry's network, so that the longest prefix counts.
        let inner = networks(at, number.saturating_sub(1))[0].replace(".0.0/16", ".128.0/17");
        let kind = if theme == Theme::Opaque { 14 + random.below(3) } else { random.below(32) };
        let exact = format!("n{number}.p{port}.test");
        // Exact hosts are asked for, a few at a time; the test does not wait for many.
        let (host, name) = match random.below(4) {
            0 => (format!("*.p{port}.test"), format!("x{number}.p{port}.test")),
            1 if number == 0 => (exact.clone(), exact.clone()),
            _ if is_exact(kind) => (exact.clone(), exact),
            _ => (format!("*.{exact}"), format!("x.{exact}")),
        };
        let other_port = self::port(random.below(usize::from(PORTS)) as u8);
        let wild = host.starts_with('*');
        let strict = mode.enforcement == Enforcement::Strict;
        let dns = "resolution: DNS".to_owned();
        let endpoint = |n| address(at, 100 + number, n);
        let (protocol, rest) = match kind {
            0..4 if !wild => (*random.pick(&["TLS", "HTTPS"]), dns),
            0..14 => ("TLS", format!("addresses: [{own}, '{v6}'], resolution: NONE")),
            14..17 => ("TCP", format!("addresses: [{own}, '{v6}'], resolution: NONE")),
            17 => ("TCP", format!("addresses: [{inner}], resolution: NONE")),
            18 => ("TLS", format!("addresses: [{inner}], resolution: NONE")),
            19 if !wild => {
                ("TLS", format!("resolution: STATIC, endpoints: [{{address: {}}}]", endpoint(1)))
            }
            20 | 22 if !wild => ("TLS", dns),
            21 => ("HTTP", format!("addresses: [{own}], resolution: NONE")),
            // Any bytes, at the addresses of the name (GAP-1).
            24 | 25 if !wild => ("TCP", dns),
            26 if !wild => {
                let both = [1, 2].map(|n| format!("{{address: {}}}", endpoint(n))).join(", ");
                ("TCP", format!("addresses: [{own}], resolution: STATIC, endpoints: [{both}]"))
            }
            // A virtual address.
            27 if !wild => {
                let vip = own.replace(".0.0/16", ".7.7");
                ("TLS", format!("addresses: [{vip}], resolution: DNS"))
            }
            // No address: those that the name has, or in istio any.
            28 => ("TLS", "resolution: NONE".to_owned()),
            29 if wild && strict => ("TLS", dns),
            29 | 30 if wild => ("TLS", "resolution: DYNAMIC_DNS".to_owned()),
            31 if !wild => ("HTTP", dns),
            _ => ("TLS", format!("addresses: [{own}], resolution: NONE")),
        };
        let by_dns = !rest.contains("addresses");
        let target = if kind == 20 && rest.contains("DNS") {
            format!(", targetPort: {other_port}")
        } else {
            String::new()
        };
        self.yaml += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: e-{port}-{number}{}{}}}\n\
             spec: {{hosts: ['{host}'], ports: [{{number: {port}, name: p, protocol: {protocol}{target}}}], \
             {rest}{}}}\n",
            // Seldom another's, or nobody's.
            if random.percent(10) { ", namespace: other" } else { "" },
            if protocol == "TLS" && random.percent(5) { NO_ECH } else { "" },
            random.pick(&[", exportTo: ['.']", ", exportTo: ['*']", "", "", "", ""]),
        );
        let v4 = (1..=ADDRESSES).map(|n| address(at, 100 + number, n));
        let v6 = (1..=ADDRESSES).map(|n| address_v6(port, 100 + number, u16::from(n)));
        let known = |(known, _): &(String, Vec<IpAddr>)| *known == name;
        if !self.zone.iter().any(known) {
            self.zone.push((name.clone(), v4.chain(v6).collect()));
        }
        self.entries.push(Entry { at, number, name: name.clone(), by_dns });
        Host { number, written: host, protocol }
    }

    /// One destination on each port that no entry has; flows often go there.
    pub(crate) fn visited(&self) -> Vec<SocketAddr> {
        (0..PORTS).map(|at| SocketAddr::new(address(at, VISITED, 1), port(at))).collect()
    }

    /// Connections to these: clients that say something else than HTTP.
    pub(crate) fn visits(&self, random: &mut Random) -> Vec<Case> {
        let (_, make) = HONEST[0];
        let visit = |to| Case { to, how: How::Whole, bytes: make(random, "unknown.test") };
        self.visited().into_iter().map(visit).collect()
    }

    /// A connection to somewhere around an entry, with a name and first bytes of some kind. `number`
    /// makes the addresses of large networks differ from case to case.
    pub(crate) fn case(&self, random: &mut Random, number: usize) -> (Case, &'static str) {
        let entry = random.pick(&self.entries);
        let honest = random.percent(70);
        let dns = 1 + match honest {
            true => random.below(usize::from(HONEST_ADDRESSES)) as u8,
            false => HONEST_ADDRESSES + random.below(4) as u8,
        };
        // Where nothing is said of a port, that is what is tried there.
        let open = !self.open.is_empty() && random.percent(30);
        let at = if open { *random.pick(&self.open) } else { entry.at };
        let ip = match random.below(20) {
            0 => address(at, NOBODYS, 1 + random.below(250) as u8),
            1 => address(at, VISITED, 1),
            _ if open => address(at, VISITED, 1),
            2..5 if !entry.by_dns => address_v6(port(at), entry.number, number as u16),
            2..5 => address_v6(port(at), 100 + entry.number, u16::from(dns)),
            _ if entry.by_dns => address(at, 100 + entry.number, dns),
            5 => Ipv4Addr::new(10, second(at, entry.number), 7, 7).into(),
            _ => {
                let [third, last] = (random.below(65_536) as u16).to_be_bytes();
                Ipv4Addr::new(10, second(at, entry.number), third, last).into()
            }
        };
        let others = || self.entries.iter().filter(|other| other.at == entry.at);
        let name = match random.below(10) {
            0 => "unknown.test".to_owned(),
            1 => format!("deep.er.{}", entry.name),
            2 => format!("p{}.test", port(at)),
            3 => others().next_back().map_or_else(String::new, |other| other.name.clone()),
            _ => entry.name.clone(),
        };
        let to = SocketAddr::new(ip, port(at));
        if random.percent(3) {
            let bytes = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
            return (Case { to, how: How::Whole, bytes: bytes.into_bytes() }, "HTTP");
        }
        let (what, make) = if honest { *random.pick(&HONEST) } else { *random.pick(&HOSTILE) };
        let bytes = make(random, &name);
        let how = match random.below(6) {
            // Bytes behind a hello are judged if they come with it, by either.
            _ if !honest || what == "early data" => How::Whole,
            0 => How::Split(random.below(bytes.len())),
            1 => How::Pause(random.below(bytes.len())),
            _ => How::Whole,
        };
        (Case { to, how, bytes }, what)
    }
}

/// Kinds of entries whose host is resolved, or fixed.
fn is_exact(kind: usize) -> bool {
    matches!(kind, 0..4 | 19 | 20 | 22 | 24..28 | 31)
}

/// An entry's own networks.
fn networks(at: u8, number: u8) -> [String; 2] {
    let v4 = format!("10.{}.0.0/16", second(at, number));
    [v4, format!("2001:db8:{}:{number}::/64", port(at))]
}

/// Second number of an entry's own IPv4 network.
fn second(at: u8, number: u8) -> u8 {
    128 + at * 4 + number
}

fn address(at: u8, third: u8, last: u8) -> IpAddr {
    Ipv4Addr::new(10, at, third, last).into()
}

fn address_v6(port: u16, number: u8, last: u16) -> IpAddr {
    // Digits as they are written in the network.
    let port = u16::from_str_radix(&port.to_string(), 16).unwrap_or(0);
    let number = u16::from_str_radix(&number.to_string(), 16).unwrap_or(0);
    Ipv6Addr::new(0x2001, 0xdb8, port, number, 0, 0, 0, last).into()
}
