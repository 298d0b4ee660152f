//! The strict profile: section 5 with the rows of profiles.md over it.
//!
//! What competes for a connection is ranked as in LIS-6, address before name, but a candidate whose
//! conditions do not hold is passed over instead of ending the search (GAP-15).

use std::net::{IpAddr, SocketAddr};

use interceptor::policy::{Enforcement, Outbound};

use crate::observe::{Seen, To, Verdicts};
use crate::registry::{
    Host, Kind, Named, Service, black_hole, passthrough, services, unknown_request,
};
use crate::request;
use crate::routing::{Chain, Rules, nominal};
use crate::sidecar::mode;
use crate::world::{Bytes, Flow, World};

struct Reading<'a> {
    world: &'a World,
    dst: SocketAddr,
    /// The services of the dialled port.
    here: Vec<Service<'a>>,
    /// Hosts there that only VirtualServices know.
    nominal: Vec<(String, Rules<'a>)>,
}

/// How specifically a candidate claims the address: the bits that it gives, or none at all.
type Rank = Option<u8>;

pub(crate) fn verdicts(world: &World, flow: &Flow) -> Verdicts {
    let mut here = services(world);
    here.retain(|service| service.port.number == flow.dst.port());
    let nominal = nominal(world, flow.dst.port());
    let reading = Reading { world, dst: flow.dst, here, nominal };
    if reading.closed() && !reading.here.iter().any(|s| s.prefix(flow.dst.ip(), None).is_some()) {
        return Verdicts { inspects: false, dialled: Seen::Reset, hello: None, request: None };
    }
    let dialled = reading.silent();
    if reading.bytes_do_not_matter() {
        return Verdicts { inspects: false, dialled, hello: None, request: None };
    }
    let hello = reading.hello(flow.hello);
    let request =
        hello.serves_http().then(|| match request::host(&flow.head, flow.dst, world.profile) {
            Ok(host) => reading.request(flow, &host),
            Err(answer) => answer,
        });
    Verdicts { inspects: true, dialled, hello: Some(hello), request }
}

impl<'a> Reading<'a> {
    /// T-13: a special address that takes an entry that lists it.
    fn closed(&self) -> bool {
        let ip = self.dst.ip();
        match mode(self.world) {
            Outbound::RegistryOnly => special(ip),
            Outbound::AllowAny | Outbound::AllowAnyDynamicDns => metadata(ip),
        }
    }

    fn rank(&self, service: &Service<'_>) -> Rank {
        service.prefix(self.dst.ip(), None)
    }

    fn covers(&self, service: &Service<'_>) -> bool {
        service.covers(self.dst.ip())
    }

    /// Services of opaque bytes to which the operator's own word gives this address: by
    /// `addresses`, or, as unspecifically as LIS-14, by the addresses of endpoints (R3). The best first.
    fn owners(&self, kinds: &[Kind]) -> Vec<(Rank, &Service<'a>)> {
        let ip = self.dst.ip();
        let given = |service: &&Service<'_>| match service.has_addresses() {
            true => self.rank(service).is_some(),
            false => service.has_endpoint(ip),
        };
        let mut owners: Vec<_> = self
            .here
            .iter()
            .filter(|service| kinds.contains(&service.kind()))
            .filter(given)
            .map(|service| (self.rank(service), service))
            .collect();
        // Stable: among equals the first (REG-4).
        owners.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        owners
    }

    /// A TCP service takes any bytes to its address. They need no look where nothing that looks at
    /// names claims the address as specifically.
    fn bytes_do_not_matter(&self) -> bool {
        let owners = self.owners(&[Kind::Tcp]);
        let Some((rank, _)) = owners.first() else { return false };
        let weaker = |service: &Service<'_>| match service.kind() {
            Kind::Tcp | Kind::Http => true,
            Kind::Tls | Kind::Sniffed => !self.covers(service) || self.rank(service) < *rank,
        };
        (rank.is_some() || !self.routes_http()) && self.here.iter().all(weaker)
    }

    /// Whether requests have names on this port.
    fn routes_http(&self) -> bool {
        !self.nominal.is_empty()
            || self.here.iter().any(|s| matches!(s.kind(), Kind::Http | Kind::Sniffed))
    }

    fn relay(&self, service: &Service<'a>) -> Seen {
        // Services of opaque bytes have one chain.
        service.chains(false)[0].relay(self.world, self.dst, None)
    }

    fn hello(&self, bytes: Bytes) -> Seen {
        match bytes {
            Bytes::Closed => Seen::Close { cluster: None },
            Bytes::Tls(name) => self.tls(name),
            Bytes::Http1 | Bytes::Http2 => self.http(),
            Bytes::Opaque => self.nameless(Seen::Reset),
            Bytes::Silent => self.silent(),
            // Bytes that hide a name are refused, unless no name decides anything here.
            Bytes::Malformed => {
                let named = self.here.iter().any(|service| service.kind() == Kind::Tls);
                if named || self.routes_http() { black_hole() } else { self.nameless(black_hole()) }
            }
        }
    }

    fn tls(&self, name: Option<&str>) -> Seen {
        let owner = self.owners(&[Kind::Tcp]).into_iter().next();
        let listing = self.here.iter().filter(|service| {
            matches!(service.kind(), Kind::Tls | Kind::Sniffed) && self.covers(service)
        });
        // A sniffed service takes the names of its host, whatever chain it has.
        let fit = |chain: &Chain<'_>| match chain.service.kind() {
            Kind::Tls => chain.fit(name?),
            _ => chain.service.fit(name?),
        };
        let chains = listing.flat_map(|service| service.chains(false));
        let named = chains
            .filter(|chain| fit(chain).is_some())
            .min_by_key(|chain| (std::cmp::Reverse(self.rank(&chain.service)), fit(chain)));
        match (named, owner) {
            (Some(chain), Some((rank, owner))) if self.rank(&chain.service) < rank => {
                self.relay(owner)
            }
            (Some(chain), _) => chain.relay(self.world, self.dst, name),
            (None, Some((_, owner))) => self.relay(owner),
            (None, None) => self.hanging(&[Kind::Tcp], self.unknown(name, black_hole())),
        }
    }

    /// GAP-20: judged request by request, unless the address is one of opaque bytes.
    fn http(&self) -> Seen {
        match self.owners(&[Kind::Tcp, Kind::Sniffed]).first() {
            Some((Some(_), owner)) if owner.kind() == Kind::Sniffed => Seen::Requests,
            Some((Some(_), owner)) => self.relay(owner),
            _ if self.routes_http() => Seen::Requests,
            Some((None, owner)) => self.relay(owner),
            None => self.hanging(&[Kind::Tcp], Seen::Requests),
        }
    }

    /// T-28: silence is what TCP services take, and others only where no name could be refused.
    fn silent(&self) -> Seen {
        let open = !self.closed() && mode(self.world) != Outbound::RegistryOnly;
        let all = [Kind::Tcp, Kind::Sniffed];
        match self.owners(&all).first() {
            Some((_, owner)) if open || owner.kind() == Kind::Tcp => self.relay(owner),
            Some(_) => black_hole(),
            None => {
                let claiming = if open { &all[..] } else { &all[..1] };
                self.hanging(claiming, self.unknown(None, black_hole()))
            }
        }
    }

    /// Bytes that show no name.
    fn nameless(&self, refusal: Seen) -> Seen {
        match self.owners(&[Kind::Tcp, Kind::Sniffed]).first() {
            Some((_, owner)) => self.relay(owner),
            None => self.hanging(&[Kind::Tcp, Kind::Sniffed], self.unknown(None, refusal)),
        }
    }

    /// GAP-1: services without addresses own what the daemon resolves for their hosts.
    fn hanging(&self, kinds: &[Kind], otherwise: Seen) -> Seen {
        let claiming = self.here.iter().filter(|s| kinds.contains(&s.kind()) && !s.has_addresses());
        let claim = |service: &Service<'_>| {
            let host = service.exact()?.to_owned();
            let chain = &service.chains(false)[0];
            if !chain.is_own() {
                let seen = chain.relay(self.world, self.dst, Some(&host));
                return Some((host, seen));
            }
            let to = match service.upstream(self.dst, None, Enforcement::Strict) {
                // What is asked is the check itself.
                To::Checked { port, .. } => To::Dialled { port, name: None },
                to => to,
            };
            Some((host, service.relay_to(to)))
        };
        let claims: Vec<_> = claiming.filter_map(claim).collect();
        if claims.is_empty() {
            return otherwise;
        }
        Seen::Hanging { claims, otherwise: Box::new(otherwise) }
    }

    fn unknown(&self, name: Option<&str>, refusal: Seen) -> Seen {
        if self.closed() || mode(self.world) == Outbound::RegistryOnly {
            return refusal;
        }
        Seen::Relay { to: vec![passthrough(self.dst, name, Enforcement::Strict)], rule: None }
    }

    fn request(&self, flow: &Flow, host: &Host) -> Seen {
        let ip = self.dst.ip();
        // HTTP-3: any address, unless the request goes to that address (R3).
        let accepts = |service: &&Service<'_>| match service.kind() {
            Kind::Http if service.entry.resolution != "NONE" => true,
            Kind::Http | Kind::Sniffed => service.covers(ip),
            Kind::Tls | Kind::Tcp => false,
        };
        // LIS-6: the address of a sniffed service before the names of others.
        let rank = |named: &Named<'_>| match named {
            Named::Service(service) if service.kind() == Kind::Sniffed => self.rank(service),
            _ => None,
        };
        let mut candidates = self.here.iter().filter(accepts);
        let found = match &host.name {
            Some(name) => {
                let nominal = self.nominal.iter().cloned();
                let nominal = nominal.map(|(host, rules)| Named::Nominal(host, rules));
                candidates
                    .map(|service| Named::Service(service.clone()))
                    .chain(nominal)
                    .filter(|named| named.fit(name).is_some())
                    .min_by_key(|named| (std::cmp::Reverse(rank(named)), named.fit(name)))
            }
            None => {
                let by_address = candidates.find(|service| {
                    service.kind() == Kind::Http && service.prefix(ip, Some(true)).is_some()
                });
                by_address.map(|service| Named::Service(service.clone()))
            }
        };
        match found {
            Some(named) => named.request(self.world, flow, host),
            None => unknown_request(self.world, self.dst, host, self.closed()),
        }
    }
}

fn metadata(ip: IpAddr) -> bool {
    ["169.254.169.254", "fd00:ec2::254"].iter().any(|text| text.parse() == Ok(ip))
}

/// The list of T-13, as far as addresses alone tell.
fn special(ip: IpAddr) -> bool {
    metadata(ip)
        || match ip {
            IpAddr::V4(ip) => {
                let [a, b, ..] = ip.octets();
                matches!(a, 0 | 127 | 224..=239) || (a, b) == (169, 254) || ip.to_bits() == u32::MAX
            }
            IpAddr::V6(ip) => {
                let first = ip.segments()[0];
                ip.to_bits() <= 1 || first & 0xffc0 == 0xfe80 || first >> 8 == 0xff
            }
        }
}
