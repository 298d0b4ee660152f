//! One question to the name servers: A and AAAA at once, the CNAME chain followed, no cache.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::time::timeout;

use super::cache::{Answer, Asked, MAX_ADDRESSES};
use crate::decide::host::HostName;

/// Bound on one question, all servers and tries together.
const TOTAL: Duration = Duration::from_millis(4500);
/// Servers asked at most, as in resolv.conf(5).
const MAX_SERVERS: usize = 3;
/// How long a family is waited for once the other has given addresses (servers that drop AAAA are
/// common; RFC 8305 section 3).
const OTHER_FAMILY: Duration = Duration::from_millis(500);
/// CNAME records followed at most.
const MAX_CHAIN: usize = 16;

/// The name servers, and which of them answered last.
#[derive(Debug)]
pub(super) struct Servers {
    servers: Vec<TokioResolver>,
    preferred: AtomicUsize,
}

/// What one family's question gave.
pub(super) enum Family {
    Found {
        addresses: Vec<IpAddr>,
        ttl: Duration,
    },
    /// The name has no address of this family; `nowhere`: it does not exist at all.
    Empty {
        nowhere: bool,
    },
    Failed(Arc<str>),
}

impl Servers {
    pub(super) fn new(servers: &[SocketAddr]) -> Self {
        let count = servers.len().min(MAX_SERVERS);
        // A client without TLS is made of plain values: this does not fail.
        let servers = servers.iter().take(count).filter_map(|&server| client(server, count).ok());
        Self { servers: servers.collect(), preferred: AtomicUsize::new(0) }
    }

    /// Asks the servers in order, beginning with the one that answered last, until one answers. An
    /// answer that lacks a family holds `refresh` at most.
    pub(super) async fn ask(&self, host: &HostName, refresh: Duration) -> Asked {
        let Some(name) = absolute(host) else {
            return Err("the name does not fit a DNS question".into());
        };
        let mut last: Asked = Err("no name server is configured".into());
        let first = self.preferred.load(Ordering::Relaxed);
        let limit = TOTAL / u32::try_from(self.servers.len()).unwrap_or(1).max(1);
        for turn in 0..self.servers.len() {
            let index = (first + turn) % self.servers.len();
            last = ask_one(&self.servers[index], &name, limit, refresh).await;
            if last.is_ok() {
                self.preferred.store(index, Ordering::Relaxed);
                break;
            }
        }
        last
    }
}

async fn ask_one(server: &TokioResolver, name: &Name, limit: Duration, refresh: Duration) -> Asked {
    let v4 = Box::pin(family(server, name, RecordType::A, limit));
    let v6 = Box::pin(family(server, name, RecordType::AAAA, limit));
    let (v4, v6) = match select(v4, v6).await {
        Either::Left((v4, rest)) => {
            let v6 = second(&v4, rest).await;
            (v4, v6)
        }
        Either::Right((v6, rest)) => {
            let v4 = second(&v6, rest).await;
            (v4, v6)
        }
    };
    join(v4, v6, refresh)
}

/// The union of both families. One that failed is missing, not fatal, but asked for again soon.
fn join(v4: Family, v6: Family, refresh: Duration) -> Asked {
    use Family::{Empty, Failed, Found};
    match (v4, v6) {
        (Found { mut addresses, ttl }, Found { addresses: mut more, ttl: other }) => {
            // A v4-mapped AAAA may repeat an A.
            more.retain(|ip| !addresses.contains(ip));
            // Neither family may crowd out the other.
            addresses.truncate(MAX_ADDRESSES - more.len().min(MAX_ADDRESSES / 2));
            addresses.extend(more);
            Ok(Answer { addresses, ttl: ttl.min(other) })
        }
        (Found { addresses, ttl }, Empty { .. }) | (Empty { .. }, Found { addresses, ttl }) => {
            Ok(Answer { addresses, ttl })
        }
        (Found { addresses, ttl }, Failed(_)) | (Failed(_), Found { addresses, ttl }) => {
            Ok(Answer { addresses, ttl: ttl.min(refresh) })
        }
        (Empty { .. }, Empty { .. })
        | (Empty { nowhere: true }, Failed(_))
        | (Failed(_), Empty { nowhere: true }) => {
            Ok(Answer { addresses: Vec::new(), ttl: Duration::ZERO })
        }
        (Failed(why), _) | (_, Failed(why)) => Err(why),
    }
}

/// A client of one server: UDP, then TCP. Its tries fill its share of the total; its own cache is
/// off, since TTLs are the business of one place.
fn client(server: SocketAddr, of: usize) -> Result<TokioResolver, NetError> {
    let at = |mut connection: ConnectionConfig| {
        connection.port = server.port();
        connection
    };
    let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
    let server = NameServerConfig::new(server.ip(), true, connections);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut options = ResolverOpts::default();
    options.attempts = 1;
    options.timeout = TOTAL / (2 * u32::try_from(of).unwrap_or(1).max(1));
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.try_tcp_on_error = true;
    // More questions at once than the default; beyond that a question fails and is retried.
    options.max_active_requests = 1024;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
}

fn absolute(host: &HostName) -> Option<Name> {
    Name::from_labels(host.as_str().split('.').map(str::as_bytes)).ok()
}

async fn family(server: &TokioResolver, name: &Name, kind: RecordType, limit: Duration) -> Family {
    match timeout(limit, server.lookup(name.clone(), kind)).await {
        Err(_) => Family::Failed("no answer in time".into()),
        Ok(Ok(lookup)) => addresses_of(name, lookup.answers()),
        Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
            Family::Empty { nowhere: none.response_code == ResponseCode::NXDomain }
        }
        Ok(Err(error)) => Family::Failed(error.to_string().into()),
    }
}

/// The second family to answer, waited for only shortly if the first gave addresses.
async fn second(first: &Family, rest: impl Future<Output = Family>) -> Family {
    match first {
        Family::Found { .. } => {
            let late = |_| Family::Failed("no answer in time".into());
            timeout(OTHER_FAMILY, rest).await.unwrap_or_else(late)
        }
        _ => rest.await,
    }
}

/// The addresses at the end of the CNAME chain that begins at `name`, and the chain's lowest TTL.
/// Records of other owners are none of our business, whoever put them there.
pub(super) fn addresses_of(name: &Name, records: &[Record]) -> Family {
    let mut owner = name;
    let mut ttl = u32::MAX;
    for _ in 0..MAX_CHAIN {
        let alias =
            records.iter().filter(|record| record.name == *owner).find_map(|record| match &record
                .data
            {
                RData::CNAME(target) => Some((&target.0, record.ttl)),
                _ => None,
            });
        let Some((target, alias_ttl)) = alias else { break };
        owner = target;
        ttl = ttl.min(alias_ttl);
    }
    let mut addresses = Vec::new();
    for record in records.iter().filter(|record| record.name == *owner) {
        let ip = match &record.data {
            RData::A(a) => IpAddr::V4(a.0),
            RData::AAAA(aaaa) => IpAddr::V6(aaaa.0).to_canonical(),
            _ => continue,
        };
        ttl = ttl.min(record.ttl);
        if !addresses.contains(&ip) && addresses.len() < MAX_ADDRESSES {
            addresses.push(ip);
        }
    }
    if addresses.is_empty() {
        return Family::Empty { nowhere: false };
    }
    Family::Found { addresses, ttl: Duration::from_secs(ttl.into()) }
}
