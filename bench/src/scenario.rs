//! What is measured: the scenarios by their ids, and which job each is for whom.

use std::net::{Ipv4Addr, SocketAddr};

use crate::job::{Job, Until, Work};
use crate::place::Kind;
use crate::serve::{HTTP_PORT, TCP_PORT, TLS_PORT};
use crate::stats::Better;

/// A name that no policy allows.
pub(crate) const FORBIDDEN: &str = "forbidden.bench";
/// An address that no entry has.
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);

/// One kind of allowed traffic; each has a host of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// TLS that nobody on the way opens.
    Tls,
    /// TCP without a name.
    Tcp,
    /// Plain HTTP.
    Http,
    /// Plain HTTP that leaves as HTTPS; without interception the client speaks TLS itself.
    Originate,
}

impl Service {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Tls, Self::Tcp, Self::Http, Self::Originate];

    /// Its host, which the policy allows.
    pub(crate) fn host(self) -> &'static str {
        match self {
            Self::Tls => "tls.bench",
            Self::Tcp => "tcp.bench",
            Self::Http => "http.bench",
            Self::Originate => "originate.bench",
        }
    }

    /// The host's address.
    pub(crate) fn address(self) -> Ipv4Addr {
        let last = match self {
            Self::Tls => 10,
            Self::Tcp => 11,
            Self::Http => 12,
            Self::Originate => 13,
        };
        Ipv4Addr::new(203, 0, 113, last)
    }

    /// The port that the workload dials under interception.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Tls => TLS_PORT,
            Self::Tcp => TCP_PORT,
            Self::Http | Self::Originate => HTTP_PORT,
        }
    }

    /// A job with this host, as the workload at this place would do it.
    pub(crate) fn job(self, kind: Kind, work: Work, at_once: usize, until: Until) -> Job {
        let own_tls = self == Self::Originate && kind == Kind::Direct;
        let port = if own_tls { TLS_PORT } else { self.port() };
        let to = SocketAddr::from((self.address(), port));
        let tls = self == Self::Tls || own_tls;
        Job { work, to, name: self.host().to_owned(), tls, at_once, until }
    }
}

/// A scenario that is measured in rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    /// Its id on the command line and in the results.
    pub(crate) id: &'static str,
    /// What it is, for the table.
    pub(crate) what: &'static str,
    service: Service,
    work: Work,
    at_once: usize,
    /// Whether its figure is a rate or a time.
    pub(crate) better: Better,
}

const fn scenario(
    id: &'static str,
    what: &'static str,
    service: Service,
    work: Work,
    at_once: usize,
) -> Scenario {
    let better = if matches!(work, Work::RoundTrip) { Better::Less } else { Better::More };
    Scenario { id, what, service, work, at_once, better }
}

/// All that are measured in rounds.
pub(crate) const IN_ROUNDS: [Scenario; 10] = [
    scenario("bulk-1", "TLS download, 1 connection", Service::Tls, Work::Bulk, 1),
    scenario("bulk-8", "TLS download, 8 connections", Service::Tls, Work::Bulk, 8),
    scenario("tls-connect-1", "new TLS connections, 1 at a time", Service::Tls, Work::Connect, 1),
    scenario(
        "tls-connect-32",
        "new TLS connections, 32 at a time",
        Service::Tls,
        Work::Connect,
        32,
    ),
    scenario(
        "tcp-connect-32",
        "TCP connect and 1 byte, 32 at a time",
        Service::Tcp,
        Work::Connect,
        32,
    ),
    scenario(
        "rtt-64",
        "round trips of 64 bytes over TLS, median time",
        Service::Tls,
        Work::RoundTrip,
        1,
    ),
    scenario("http-1", "HTTP/1.1 keep-alive, 1 connection", Service::Http, Work::Request, 1),
    scenario("http-64", "HTTP/1.1 keep-alive, 64 connections", Service::Http, Work::Request, 64),
    scenario(
        "originate-64",
        "HTTP that leaves as HTTPS, 64 connections",
        Service::Originate,
        Work::Request,
        64,
    ),
    scenario(
        "refuse",
        "refused TLS names, 8 at a time, against connections that are allowed",
        Service::Tls,
        Work::Refused,
        8,
    ),
];

/// Memory of idle connections.
pub(crate) const IDLE: &str = "idle-1000";
/// Policies by the number of their hosts.
pub(crate) const POLICIES: [(&str, usize); 3] =
    [("policy-10", 10), ("policy-1000", 1000), ("policy-10000", 10_000)];

/// Every id, in the order in which they run.
pub(crate) fn ids() -> Vec<&'static str> {
    let policies = POLICIES.iter().map(|(id, _)| *id);
    IN_ROUNDS.iter().map(|scenario| scenario.id).chain([IDLE]).chain(policies).collect()
}

impl Scenario {
    /// Whether somebody at this place takes part.
    pub(crate) fn takes(&self, kind: Kind) -> bool {
        match kind {
            Kind::Direct => true,
            Kind::Proxy | Kind::Envoy | Kind::Haproxy | Kind::Nginx => true,
            Kind::Bypass => matches!(self.service, Service::Tls | Service::Tcp) && !self.refuses(),
            Kind::Name => self.service == Service::Tls,
        }
    }

    /// The tier that its traffic takes at this place.
    pub(crate) fn tier(&self, kind: Kind) -> &'static str {
        kind.tier(self.service)
    }

    /// Its traffic.
    pub(crate) fn service(&self) -> Service {
        self.service
    }

    /// Whether it counts refusals.
    pub(crate) fn refuses(&self) -> bool {
        self.work == Work::Refused
    }

    /// Whether processor time counts per GiB; else per 1,000 operations.
    pub(crate) fn per_gib(&self) -> bool {
        self.work == Work::Bulk
    }

    /// Whether each operation has a connection, and so a line in the log, of its own.
    pub(crate) fn by_connection(&self) -> bool {
        self.work != Work::Request
    }

    /// The job to measure at this place. Where nobody refuses, the same connection is made and allowed.
    pub(crate) fn job(&self, kind: Kind, until: Until) -> Job {
        if !self.refuses() {
            return self.service.job(kind, self.work, self.at_once, until);
        }
        if kind == Kind::Direct {
            return self.service.job(kind, Work::Connect, self.at_once, until);
        }
        let job = self.service.job(kind, self.work, self.at_once, until);
        Job { name: FORBIDDEN.to_owned(), ..job }
    }

    /// A few operations of it, to check before measuring.
    pub(crate) fn sample(&self, kind: Kind) -> Job {
        let job = self.job(kind, Until::Operations(3));
        Job { at_once: self.at_once.min(2), ..job }
    }

    /// What must not come through at this place; none where there is nothing to refuse by.
    pub(crate) fn forbidden(&self, kind: Kind) -> Option<Job> {
        let own = matches!(kind, Kind::Name | Kind::Proxy);
        if matches!(kind, Kind::Direct | Kind::Bypass) || (self.service == Service::Tcp && !own) {
            return None;
        }
        let work = if self.service.port() == HTTP_PORT { Work::Request } else { Work::Refused };
        let job = self.service.job(kind, work, 1, Until::Operations(2));
        Some(match self.service {
            Service::Tcp => Job { to: SocketAddr::from((NOBODY, TCP_PORT)), ..job },
            _ => Job { name: FORBIDDEN.to_owned(), ..job },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_that_were_promised() {
        let promised = "bulk-1 bulk-8 tls-connect-1 tls-connect-32 tcp-connect-32 rtt-64 http-1 \
                        http-64 originate-64 refuse idle-1000 policy-10 policy-1000 policy-10000";
        assert_eq!(ids().join(" "), promised);
    }

    #[test]
    fn only_round_trips_count_as_a_time() {
        for scenario in IN_ROUNDS {
            let time = scenario.better == Better::Less;
            assert_eq!(time, scenario.id == "rtt-64", "{}", scenario.id);
        }
    }

    #[test]
    fn nobody_measures_refusals_where_nothing_is_refused() {
        let refuse = IN_ROUNDS.iter().find(|s| s.refuses()).expect("a scenario");
        let until = Until::Operations(1);
        assert_eq!(refuse.job(Kind::Direct, until).work, Work::Connect);
        assert_eq!(refuse.job(Kind::Name, until).name, FORBIDDEN);
        assert!(!refuse.takes(Kind::Bypass));
    }
}
