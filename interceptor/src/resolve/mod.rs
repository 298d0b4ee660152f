//! Names to addresses: the daemon's own answers, never the workload's (T-39).

mod ask;
mod cache;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ask::Servers;
use cache::{Cache, Holding};
use tokio::sync::watch;

use crate::decide::host::HostName;

/// How the resolver behaves.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Name servers to ask, in order; at most three, as in resolv.conf(5).
    pub servers: Vec<SocketAddr>,
    /// How long the last good answer may stand in for a failing resolver once its TTL has passed;
    /// `None` = for ever (RES-7 in istio; 5 minutes in strict, T-42).
    pub stale_for: Option<Duration>,
    /// Longest life of an answer that lacks one family because asking for it failed, and longest
    /// pause before a failing name is asked for again (MESH-7; the pause is 1 to 5 s).
    pub refresh: Duration,
}

/// The daemon's resolver. Asks from the daemon's own network namespace; hosts are absolute; no
/// search list, no /etc/hosts.
#[derive(Debug)]
pub struct Resolver {
    cache: Arc<Cache>,
    source: Source,
}

/// Where answers come from.
#[derive(Debug)]
enum Source {
    Servers(Arc<Servers>),
    /// A table, for tests of what stands on the resolver.
    #[cfg(test)]
    Table(std::collections::HashMap<HostName, Vec<IpAddr>>),
}

/// Why a name gave no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name exists without addresses, or does not exist.
    #[error("{0} has no address")]
    NoAddress(HostName),
    /// No server answered in time and no earlier answer is young enough.
    #[error("no name server answered for {host}: {why}")]
    Failed {
        /// The name asked for.
        host: HostName,
        /// The last failure.
        why: Arc<str>,
    },
}

impl Resolver {
    /// Makes a resolver. Sends nothing yet.
    pub fn new(config: ResolverConfig) -> Self {
        Self {
            cache: Arc::new(Cache::new(config.stale_for, config.refresh)),
            source: Source::Servers(Arc::new(Servers::new(&config.servers))),
        }
    }

    /// Changes how long answers hold, as in [`ResolverConfig`]; at once, for what is known as well.
    pub fn hold(&self, stale_for: Option<Duration>, refresh: Duration) {
        self.cache.hold(Holding { stale_for, refresh });
    }

    /// A resolver that knows `table` and nothing else.
    #[cfg(test)]
    pub(crate) fn of_table(table: &[(&str, &[&str])]) -> Self {
        let parse = |(host, addresses): &(&str, &[&str])| {
            let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
            (HostName::parse(host).unwrap(), addresses)
        };
        Self {
            cache: Arc::new(Cache::new(None, Duration::from_secs(60))),
            source: Source::Table(table.iter().map(parse).collect()),
        }
    }

    /// Every name that would be answered with addresses from memory now, with those.
    pub fn known(&self) -> Vec<(HostName, Arc<[IpAddr]>)> {
        self.cache.known()
    }

    /// Whether a lookup of `host` would ask nobody now.
    pub fn remembers(&self, host: &HostName) -> bool {
        self.cache.remembers(host)
    }

    /// Changes with every answer that is news: other addresses, or none any more.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.cache.news()
    }

    /// The addresses of `host`, from the cache while the answer's TTL lasts (floor 1 s, T-41), else
    /// asked now. Concurrent questions for one name share one query. At most 64 addresses, in the
    /// order of the answer, IPv4 before IPv6; never a v4-mapped one. Takes at most about five
    /// seconds, and one where an older answer can be served instead (T-42).
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn lookup(&self, host: &HostName) -> Result<Arc<[IpAddr]>, ResolveError> {
        match &self.source {
            Source::Servers(servers) => {
                let (servers, name) = (Arc::clone(servers), host.clone());
                let refresh = self.cache.holding().refresh;
                self.cache.get(host, || async move { servers.ask(&name, refresh).await }).await
            }
            #[cfg(test)]
            Source::Table(table) => {
                let addresses = table.get(host).cloned().unwrap_or_default();
                let answer = cache::Answer { addresses, ttl: Duration::from_secs(60) };
                self.cache.get(host, || async move { Ok(answer) }).await
            }
        }
    }
}

#[cfg(test)]
mod tests;
