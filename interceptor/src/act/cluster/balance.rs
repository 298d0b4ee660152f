//! Which endpoint is next (DR-13, RES-15, SE-7).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use super::Cluster;
use crate::act::dial::random_below;
use crate::decide::traffic::{LoadBalancer, OutlierDetection};

/// An address that may be dialled, and its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u32,
}

/// What the choice goes by besides the cluster's state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) balancer: &'a LoadBalancer,
    pub(crate) outlier: Option<&'a OutlierDetection>,
    /// The hash of what [`LoadBalancer::Hash`] names; `None`: the request lacks it.
    pub(crate) hash: Option<u64>,
    /// Endpoints that were tried already (VS-40).
    pub(crate) avoid: &'a [SocketAddr],
    /// The address that the workload dialled: where it is one of them and the balancer has no
    /// reason to prefer another, the workload's own choice stands.
    pub(crate) dialled: Option<SocketAddr>,
}

/// `candidates` in the order in which they are tried: the chosen one first, then the others in a
/// random order by weight. Empty: there is none, or all are ejected.
pub(crate) fn order(
    cluster: &Cluster,
    candidates: &[Candidate],
    wish: Wish<'_>,
) -> Vec<SocketAddr> {
    let usable = cluster.healthy(candidates.iter().map(|one| one.address), wish.outlier);
    let fresh: Vec<_> = usable.iter().copied().filter(|one| !wish.avoid.contains(one)).collect();
    // If all were tried, they are tried again.
    let pool = if fresh.is_empty() { &usable } else { &fresh };
    let pool: Vec<_> =
        candidates.iter().copied().filter(|one| pool.contains(&one.address)).collect();
    let Some(first) = choose(cluster, &pool, wish) else { return Vec::new() };
    let mut order = vec![first];
    let mut left: Vec<_> = pool.into_iter().filter(|one| one.address != first).collect();
    while let Some(at) = draw(&left) {
        order.push(left.swap_remove(at).address);
    }
    let again: Vec<_> = usable.into_iter().filter(|one| !order.contains(one)).collect();
    order.extend(again);
    order
}

fn choose(cluster: &Cluster, pool: &[Candidate], wish: Wish<'_>) -> Option<SocketAddr> {
    let at_random = || draw(pool).map(|at| pool[at].address);
    match wish.balancer {
        LoadBalancer::Random => at_random(),
        LoadBalancer::RoundRobin => in_turn(cluster, pool),
        LoadBalancer::Hash(_) => match wish.hash {
            Some(hash) => highest(pool, hash),
            None => at_random(),
        },
        LoadBalancer::Passthrough | LoadBalancer::LeastRequest => {
            let own = wish.dialled.filter(|own| pool.iter().any(|one| one.address == *own));
            own.or_else(|| less_busy(cluster, pool))
        }
    }
}

/// The less busy of two drawn by weight.
fn less_busy(cluster: &Cluster, pool: &[Candidate]) -> Option<SocketAddr> {
    let (one, other) = (pool[draw(pool)?], pool[draw(pool)?]);
    let endpoints = cluster.endpoints();
    let load = |of: &Candidate| {
        let active = endpoints.get(&of.address).map_or(0, |state| state.active);
        // Compared by fractions: active / weight.
        u64::from(active)
    };
    let (a, b) =
        (load(&one) * u64::from(other.weight.max(1)), load(&other) * u64::from(one.weight.max(1)));
    Some(if b < a { other.address } else { one.address })
}

/// Every endpoint as often as its weight says, in the order of the addresses.
fn in_turn(cluster: &Cluster, pool: &[Candidate]) -> Option<SocketAddr> {
    let total = total(pool);
    if total == 0 {
        return None;
    }
    let mut turn = cluster.turn.fetch_add(1, Ordering::Relaxed) % total;
    let mut sorted = pool.to_vec();
    sorted.sort_by_key(|one| one.address);
    for one in sorted {
        match turn.checked_sub(u64::from(one.weight.max(1))) {
            Some(left) => turn = left,
            None => return Some(one.address),
        }
    }
    None
}

/// Rendezvous hashing: the same key goes to the same endpoint, and when one endpoint goes only its
/// own keys move.
fn highest(pool: &[Candidate], key: u64) -> Option<SocketAddr> {
    let score = |one: &Candidate| {
        let mut hasher = DefaultHasher::new();
        (key, one.address).hash(&mut hasher);
        // Uniform in (0, 1]; the logarithm makes shares proportional to weights.
        let uniform = (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64;
        f64::from(one.weight.max(1)) / -uniform.max(f64::MIN_POSITIVE).ln().min(-f64::MIN_POSITIVE)
    };
    pool.iter().max_by(|a, b| score(a).total_cmp(&score(b))).map(|one| one.address)
}

/// The hash of a key's text.
pub(crate) fn hash_of(text: &str) -> u64 {
    // Keys fixed: the same in every run.
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// An index drawn by weight.
fn draw(pool: &[Candidate]) -> Option<usize> {
    let mut ticket = random_below(total(pool));
    pool.iter().position(|one| match ticket.checked_sub(u64::from(one.weight.max(1))) {
        Some(left) => {
            ticket = left;
            false
        }
        None => true,
    })
}

fn total(pool: &[Candidate]) -> u64 {
    pool.iter().map(|one| u64::from(one.weight.max(1))).sum()
}
