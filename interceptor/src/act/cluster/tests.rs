//! Limits, outlier detection and the choice of an endpoint.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{advance, timeout};

use super::*;
use crate::decide::traffic::{HashKey, Limits, LoadBalancer, OutlierDetection};

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 80))
}

fn candidates(weights: &[u32]) -> Vec<Candidate> {
    let numbered = (1..).zip(weights);
    numbered.map(|(n, weight)| Candidate { address: address(n), weight: *weight }).collect()
}

fn wish(balancer: &LoadBalancer) -> Wish<'_> {
    Wish { balancer, outlier: None, hash: None, avoid: &[], dialled: None }
}

fn shares(cluster: &Cluster, pool: &[Candidate], wish: Wish<'_>, rounds: usize) -> Vec<f64> {
    let mut count: HashMap<SocketAddr, usize> = HashMap::new();
    for _ in 0..rounds {
        *count.entry(order(cluster, pool, wish)[0]).or_default() += 1;
    }
    let share =
        |one: &Candidate| count.get(&one.address).copied().unwrap_or(0) as f64 / rounds as f64;
    pool.iter().map(share).collect()
}

/// RES-15, SE-7: shares follow weights while nothing is under way.
#[test]
fn weights() {
    let pool = candidates(&[1, 3]);
    for balancer in [LoadBalancer::LeastRequest, LoadBalancer::Random, LoadBalancer::RoundRobin] {
        let cluster = Cluster::default();
        let shares = shares(&cluster, &pool, wish(&balancer), 4000);
        assert!((shares[0] - 0.25).abs() < 0.05, "{balancer:?} {shares:?}");
    }
    let cluster = Cluster::default();
    let balancer = LoadBalancer::RoundRobin;
    let turns: Vec<_> = (0..4).map(|_| order(&cluster, &pool, wish(&balancer))[0]).collect();
    assert_eq!(turns, [address(1), address(2), address(2), address(2)]);
}

/// RES-15: the less busy of two.
#[test]
fn least_request() {
    let cluster = Arc::new(Cluster::default());
    let pool = candidates(&[1, 1]);
    let balancer = LoadBalancer::LeastRequest;
    let busy: Vec<_> = (0..3).map(|_| cluster.busy(address(1))).collect();
    let share = shares(&cluster, &pool, wish(&balancer), 2000)[0];
    // Only where both draws fall on it.
    assert!((share - 0.25).abs() < 0.06, "{share}");
    drop(busy);
    let share = shares(&cluster, &pool, wish(&balancer), 2000)[0];
    assert!((share - 0.5).abs() < 0.06, "{share}");
}

/// DR-13: the same key goes to the same endpoint, and stays there when another one leaves.
#[test]
fn hashed() {
    let cluster = Cluster::default();
    let balancer = LoadBalancer::Hash(HashKey::SourceIp);
    let pool = candidates(&[1, 1, 1, 3]);
    let chosen = |pool: &[Candidate], key: u64| {
        order(&cluster, pool, Wish { hash: Some(hash_of(&key.to_string())), ..wish(&balancer) })[0]
    };
    let mut count = [0; 5];
    for key in 0..3000 {
        let at = chosen(&pool, key);
        assert_eq!(at, chosen(&pool, key));
        if at != address(1) {
            assert_eq!(at, chosen(&pool[1..], key), "{key}");
        }
        count[(1..=4).position(|n| address(n) == at).expect("one of them")] += 1;
    }
    assert!((400..600).contains(&count[0]) && (1350..1650).contains(&count[3]), "{count:?}");
}

/// VS-40: retries prefer endpoints that were not tried; the workload's own choice stands.
#[test]
fn preferences() {
    let cluster = Cluster::default();
    let balancer = LoadBalancer::LeastRequest;
    let pool = candidates(&[1, 1, 1]);
    let own = Wish { dialled: Some(address(2)), ..wish(&balancer) };
    for _ in 0..50 {
        assert_eq!(order(&cluster, &pool, own)[0], address(2));
        let avoid = [address(2), address(1)];
        let after = order(&cluster, &pool, Wish { avoid: &avoid, ..own });
        assert_eq!((after[0], after.len()), (address(3), 3));
        let avoid = [address(1), address(2), address(3)];
        assert_eq!(order(&cluster, &pool, Wish { avoid: &avoid, ..own }).len(), 3);
    }
    assert!(order(&cluster, &[], own).is_empty());
}

/// DR-9, DR-10.
#[tokio::test(start_paused = true)]
async fn limits() {
    let cluster = Arc::new(Cluster::default());
    let limits =
        Limits { max_connections: Some(1), max_pending_requests: Some(2), ..Limits::default() };
    let held = cluster.admit(Kind::Connection, &limits).expect("one");
    assert_eq!(cluster.admit(Kind::Connection, &limits).err(), Some(Overflow));
    let pending: Vec<_> = (0..3).map(|_| cluster.admit(Kind::Pending, &limits)).collect();
    assert_eq!(pending.iter().filter(|one| one.is_ok()).count(), 2);
    // No limit, no overflow.
    assert!((0..100).map(|_| cluster.admit(Kind::Request, &limits)).all(|one| one.is_ok()));
    let second = Duration::from_secs(1);
    assert!(timeout(second, cluster.connection(&limits)).await.is_err());
    let waiting = tokio::spawn({
        let (cluster, limits) = (Arc::clone(&cluster), limits.clone());
        async move { cluster.connection(&limits).await }
    });
    tokio::task::yield_now().await;
    drop(held);
    drop(timeout(second, waiting).await.expect("in time").expect("no panic"));
    assert!(cluster.admit(Kind::Connection, &limits).is_ok());
}

fn rules() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 3,
        consecutive_gateway_errors: 2,
        consecutive_local_origin_failures: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: 100,
        min_health_percent: 0,
    }
}

fn out(cluster: &Cluster, rules: &OutlierDetection, n: u8) -> bool {
    cluster.healthy([address(n)].into_iter(), Some(rules)).is_empty()
}

/// DR-12: what counts, and what ends the row.
#[tokio::test(start_paused = true)]
async fn outliers() {
    use Outcome::{Failure, Status, Success};
    let split = OutlierDetection { consecutive_local_origin_failures: Some(2), ..rules() };
    let off = OutlierDetection { consecutive_5xx: 0, consecutive_gateway_errors: 0, ..rules() };
    let cases: [(OutlierDetection, &[Outcome], bool); 9] = [
        (rules(), &[Status(500), Status(500)], false),
        (rules(), &[Status(500), Status(500), Status(500)], true),
        (rules(), &[Status(500), Status(500), Status(404), Status(500)], false),
        (rules(), &[Status(503), Status(503)], true),
        (rules(), &[Status(503), Status(500), Status(503)], true),
        (rules(), &[Failure, Failure], true),
        (rules(), &[Failure, Success, Failure], false),
        (split, &[Failure, Failure], true),
        (off, &[Failure, Failure, Status(503), Status(503)], false),
    ];
    for (rules, outcomes, expected) in cases {
        let cluster = Cluster::default();
        for outcome in outcomes {
            cluster.report(address(1), *outcome, Some(&rules), 2);
        }
        assert_eq!(out(&cluster, &rules, 1), expected, "{outcomes:?}");
        assert!(!out(&cluster, &rules, 2));
    }
}

/// DR-12: how long, longer each time, and shorter again after calm.
#[tokio::test(start_paused = true)]
async fn ejection_time() {
    let cluster = Cluster::default();
    let rules = rules();
    let eject = || {
        for _ in 0..2 {
            cluster.report(address(1), Outcome::Status(503), Some(&rules), 1);
        }
    };
    let seconds = Duration::from_secs;
    eject();
    advance(seconds(29)).await;
    assert!(out(&cluster, &rules, 1));
    advance(seconds(2)).await;
    assert!(!out(&cluster, &rules, 1));
    eject();
    advance(seconds(59)).await;
    assert!(out(&cluster, &rules, 1));
    advance(seconds(600)).await;
    eject();
    advance(seconds(31)).await;
    assert!(!out(&cluster, &rules, 1));
}

/// DR-12: maxEjectionPercent and minHealthPercent.
#[tokio::test(start_paused = true)]
async fn shares_of_ejected() {
    let eject = |cluster: &Cluster, rules: &OutlierDetection| {
        for n in 1..=4 {
            for _ in 0..2 {
                cluster.report(address(n), Outcome::Status(503), Some(rules), 4);
            }
        }
    };
    let left = |cluster: &Cluster, rules: &OutlierDetection| {
        cluster.healthy((1..=4).map(address), Some(rules)).len()
    };
    for (max, min, expected) in [(100, 0, 0), (50, 0, 2), (10, 0, 4), (75, 0, 1), (75, 50, 4)] {
        let cluster = Cluster::default();
        let rules =
            OutlierDetection { max_ejection_percent: max, min_health_percent: min, ..rules() };
        eject(&cluster, &rules);
        assert_eq!(left(&cluster, &rules), expected, "{max} {min}");
    }
}

#[test]
fn memory_is_bounded() {
    let clusters = Clusters::default();
    let kept = clusters.get(&ClusterName("kept".into()));
    for n in 0..5000 {
        clusters.get(&ClusterName(format!("c{n}").into()));
    }
    assert!(lock(&clusters.all).len() <= CLUSTERS_MAX);
    assert!(Arc::ptr_eq(&kept, &clusters.get(&ClusterName("kept".into()))));
    for n in 0..5000u16 {
        drop(kept.busy(SocketAddr::from(([192, 0, 2, 1], n))));
    }
    assert!(kept.endpoints().len() <= ENDPOINTS_MAX);
}
