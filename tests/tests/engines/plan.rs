//! A random policy: each port has one of its own, with the addresses and names that its flows use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use interceptor_tests::hellos::{HONEST, HOSTILE, Random};
use interceptor_tests::probe::{Case, How};

/// The first of the ports.
const FIRST_PORT: u16 = 2000;
/// How many there are.
const PORTS: u16 = 32;
/// How many addresses a name has, of each family: an answer fits in a datagram.
const ADDRESSES: u8 = 12;
/// Those of them that only honest clients dial: the kernel gives the others to the proxy, once it met
/// there what it cannot read.
const HONEST_ADDRESSES: u8 = 8;

/// Resources, names' addresses, and what flows may use of them.
pub(crate) struct Plan {
    pub(crate) yaml: String,
    pub(crate) zone: Vec<(String, Vec<IpAddr>)>,
    entries: Vec<Entry>,
}

/// One ServiceEntry, as far as flows look at it.
struct Entry {
    port: u16,
    /// Of the port's entries.
    number: u8,
    /// A name that it allows.
    name: String,
    /// Whether its addresses are those of its name.
    by_dns: bool,
}

pub(crate) fn ports() -> Vec<u16> {
    (FIRST_PORT..FIRST_PORT + PORTS).collect()
}

impl Plan {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut plan = Self { yaml: String::new(), zone: Vec::new(), entries: Vec::new() };
        for port in ports() {
            for number in 0..1 + random.below(4) {
                plan.add(random, port, number as u8);
            }
        }
        plan
    }

    fn add(&mut self, random: &mut Random, port: u16, number: u8) {
        let [own, v6] = networks(port, number);
        // Half of another entry's network, so that the longest prefix counts.
        let inner = networks(port, number.saturating_sub(1))[0].replace(".0.0/16", ".128.0/17");
        let kind = random.below(24);
        let exact = format!("n{number}.p{port}.test");
        // Exact hosts are asked for, a few at a time; the test does not wait for many.
        let (host, name) = match random.below(4) {
            0 => (format!("*.p{port}.test"), format!("x{number}.p{port}.test")),
            1 if number == 0 => (exact.clone(), exact.clone()),
            _ if is_exact(kind) => (exact.clone(), exact),
            _ => (format!("*.{exact}"), format!("x.{exact}")),
        };
        let other_port = FIRST_PORT + random.below(usize::from(PORTS)) as u16;
        let wild = host.starts_with('*');
        let dns = "resolution: DNS".to_owned();
        let (protocol, rest) = match kind {
            0..4 if !wild => (*random.pick(&["TLS", "HTTPS"]), dns),
            0..14 => ("TLS", format!("addresses: [{own}, '{v6}'], resolution: NONE")),
            14..17 => ("TCP", format!("addresses: [{own}, '{v6}'], resolution: NONE")),
            17 => ("TCP", format!("addresses: [{inner}], resolution: NONE")),
            18 => ("TLS", format!("addresses: [{inner}], resolution: NONE")),
            19 if !wild => {
                let endpoint = address(port, 100 + number, 1);
                ("TLS", format!("resolution: STATIC, endpoints: [{{address: {endpoint}}}]"))
            }
            20 if !wild => ("TLS", dns),
            21 => ("HTTP", format!("addresses: [{own}], resolution: NONE")),
            22 if !wild => ("TLS", dns),
            _ => ("TLS", format!("addresses: [{own}], resolution: NONE")),
        };
        let by_dns = rest.contains("DNS") || rest.contains("STATIC");
        let target = if kind == 20 && by_dns {
            format!(", targetPort: {other_port}")
        } else {
            String::new()
        };
        self.yaml += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: e-{port}-{number}}}\n\
             spec: {{hosts: ['{host}'], ports: [{{number: {port}, name: p, protocol: {protocol}{target}}}], \
             {rest}}}\n"
        );
        if kind == 22 && by_dns {
            self.yaml += &format!(
                "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                 metadata: {{name: d-{port}-{number}}}\nspec: {{host: {host}, trafficPolicy: \
                 {{connectionPool: {{tcp: {{maxConnections: 1000}}}}}}}}\n"
            );
        }
        if !wild {
            let v4 = (1..=ADDRESSES).map(|n| address(port, 100 + number, n));
            let v6 = (1..=ADDRESSES).map(|n| address_v6(port, 100 + number, u16::from(n)));
            self.zone.push((name.clone(), v4.chain(v6).collect()));
        }
        self.entries.push(Entry { port, number, name, by_dns });
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
        let ip = match random.below(20) {
            // Nobody's.
            0 => address(entry.port, 250, 1 + random.below(250) as u8),
            1..4 if !entry.by_dns => address_v6(entry.port, entry.number, number as u16),
            1..4 => address_v6(entry.port, 100 + entry.number, u16::from(dns)),
            _ if entry.by_dns => address(entry.port, 100 + entry.number, dns),
            _ => {
                let [third, last] = (random.below(65_536) as u16).to_be_bytes();
                Ipv4Addr::new(10, second(entry.port, entry.number), third, last).into()
            }
        };
        let others = || self.entries.iter().filter(|other| other.port == entry.port);
        let name = match random.below(10) {
            0 => "unknown.test".to_owned(),
            1 => format!("deep.er.{}", entry.name),
            2 => format!("p{}.test", entry.port),
            3 => others().next_back().map_or_else(String::new, |other| other.name.clone()),
            _ => entry.name.clone(),
        };
        let (what, make) = if honest { *random.pick(&HONEST) } else { *random.pick(&HOSTILE) };
        let bytes = make(random, &name);
        let how = match random.below(6) {
            // Bytes behind a hello are judged if they come with it, by either.
            _ if !honest || what == "early data" => How::Whole,
            0 => How::Split(random.below(bytes.len())),
            1 => How::Pause(random.below(bytes.len())),
            _ => How::Whole,
        };
        (Case { to: SocketAddr::new(ip, entry.port), how, bytes }, what)
    }
}

/// Kinds of entries whose host is resolved, or fixed.
fn is_exact(kind: usize) -> bool {
    matches!(kind, 0..4 | 19 | 20 | 22)
}

/// An entry's own networks.
fn networks(port: u16, number: u8) -> [String; 2] {
    let v4 = format!("10.{}.0.0/16", second(port, number));
    [v4, format!("2001:db8:{port}:{number}::/64")]
}

/// Second number of an entry's own IPv4 network.
fn second(port: u16, number: u8) -> u8 {
    128 + (port - FIRST_PORT) as u8 * 4 + number
}

fn address(port: u16, third: u8, last: u8) -> IpAddr {
    Ipv4Addr::new(10, (port - FIRST_PORT) as u8, third, last).into()
}

fn address_v6(port: u16, number: u8, last: u16) -> IpAddr {
    // Digits as they are written in the network.
    let port = u16::from_str_radix(&port.to_string(), 16).unwrap_or(0);
    let number = u16::from_str_radix(&number.to_string(), 16).unwrap_or(0);
    Ipv6Addr::new(0x2001, 0xdb8, port, number, 0, 0, 0, last).into()
}
