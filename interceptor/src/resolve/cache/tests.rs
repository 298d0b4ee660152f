use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{advance, sleep};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn answer(addresses: &[&str], ttl: u64) -> Asked {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl) })
}

fn failure() -> Asked {
    Err("SERVFAIL".into())
}

/// A cache with a counter of the questions that it asked.
struct Bench {
    cache: Arc<Cache>,
    asked: AtomicUsize,
}

impl Bench {
    fn new(stale_for: Option<Duration>) -> Self {
        Self { cache: Arc::new(Cache::new(stale_for, MINUTE)), asked: AtomicUsize::new(0) }
    }

    /// Looks `name` up; a question, if one is asked, is answered by `reply` after `delay`.
    async fn get(&self, name: &str, delay: Duration, reply: Asked) -> Lookup {
        let ask = || {
            self.asked.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(delay).await;
                reply
            }
        };
        self.cache.get(&host(name), ask).await
    }

    async fn now(&self, name: &str, reply: Asked) -> Lookup {
        self.get(name, Duration::ZERO, reply).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn is(lookup: Lookup, expected: &[&str]) -> bool {
    lookup.unwrap().iter().map(ToString::to_string).eq(expected.iter().copied())
}

#[tokio::test(start_paused = true)]
async fn t41_an_answer_stands_for_its_ttl_and_at_least_a_second() {
    for (ttl, fresh, expired) in [(60, 59_900, 60_100), (1, 900, 1_100), (0, 900, 1_100)] {
        let bench = Bench::new(None);
        assert!(is(bench.now("a.example", answer(&["192.0.2.1"], ttl)).await, &["192.0.2.1"]));
        advance(Duration::from_millis(fresh)).await;
        assert!(is(bench.now("a.example", answer(&["192.0.2.2"], ttl)).await, &["192.0.2.1"]));
        assert_eq!(bench.asked(), 1, "ttl {ttl}");
        advance(Duration::from_millis(expired - fresh)).await;
        assert!(is(bench.now("a.example", answer(&["192.0.2.2"], ttl)).await, &["192.0.2.2"]));
        assert_eq!(bench.asked(), 2, "ttl {ttl}");
    }
}

#[tokio::test(start_paused = true)]
async fn t42_concurrent_lookups_share_one_question_and_a_slow_name_delays_only_itself() {
    let bench = Bench::new(None);
    let slow = || bench.get("slow.example", 4 * MINUTE / 60, answer(&["192.0.2.1"], 60));
    let start = Instant::now();
    let quick = async {
        sleep(Duration::from_millis(10)).await;
        bench.now("quick.example", answer(&["192.0.2.9"], 60)).await.unwrap();
        start.elapsed()
    };
    let (a, b, c, quick) = tokio::join!(slow(), slow(), slow(), quick);
    assert!(is(a, &["192.0.2.1"]) && is(b, &["192.0.2.1"]) && is(c, &["192.0.2.1"]));
    assert!(quick < Duration::from_millis(100), "{quick:?}");
    assert_eq!(bench.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_does_not_lose_the_answer() {
    let bench = Bench::new(None);
    let slow = bench.get("a.example", Duration::from_secs(3), answer(&["192.0.2.1"], 60));
    assert!(timeout(Duration::from_secs(1), slow).await.is_err());
    sleep(Duration::from_secs(3)).await;
    assert!(is(bench.now("a.example", failure()).await, &["192.0.2.1"]));
    assert_eq!(bench.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn t42_the_last_good_answer_stands_in_for_five_minutes_then_the_name_is_refused() {
    let bench = Bench::new(Some(5 * MINUTE));
    bench.now("a.example", answer(&["192.0.2.1"], 10)).await.unwrap();
    advance(Duration::from_secs(10 + 299)).await;
    assert!(is(bench.now("a.example", failure()).await, &["192.0.2.1"]));
    advance(Duration::from_secs(2)).await;
    let refused = bench.now("a.example", failure()).await;
    assert!(matches!(refused, Err(ResolveError::Failed { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn res7_in_istio_the_last_good_answer_stands_in_for_ever() {
    let bench = Bench::new(None);
    bench.now("a.example", answer(&["192.0.2.1"], 10)).await.unwrap();
    advance(7 * 24 * 60 * MINUTE).await;
    assert!(is(bench.now("a.example", failure()).await, &["192.0.2.1"]));
    // A successful empty answer clears it.
    advance(MINUTE).await;
    assert_eq!(
        bench.now("a.example", answer(&[], 0)).await,
        Err(ResolveError::NoAddress(host("a.example")))
    );
    advance(MINUTE).await;
    assert!(bench.now("a.example", failure()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn t42_a_silent_resolver_costs_a_second_once_where_an_older_answer_serves() {
    let bench = Bench::new(None);
    bench.now("a.example", answer(&["192.0.2.1"], 1)).await.unwrap();
    advance(Duration::from_secs(2)).await;
    let start = Instant::now();
    let silent = Duration::from_millis(4500);
    assert!(is(bench.get("a.example", silent, failure()).await, &["192.0.2.1"]));
    assert!(start.elapsed() <= Duration::from_millis(1100), "{:?}", start.elapsed());
    sleep(silent).await;
    // The failure is known now: no more waiting until the next try is due.
    let start = Instant::now();
    assert!(is(bench.get("a.example", silent, failure()).await, &["192.0.2.1"]));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(bench.asked(), 2);
}

/// What the kernel may let go direct is what is known.
#[tokio::test(start_paused = true)]
async fn t42_a_name_stays_known_while_a_resolver_that_may_be_silent_is_asked() {
    let bench = Bench::new(Some(5 * MINUTE));
    bench.now("a.example", answer(&["192.0.2.1"], 1)).await.unwrap();
    let known = || bench.cache.known().into_iter().map(|(host, ips)| (host, ips.to_vec()));
    let all: Vec<_> = known().collect();
    assert_eq!(all, [(host("a.example"), vec!["192.0.2.1".parse().unwrap()])]);
    advance(Duration::from_secs(2)).await;
    assert_eq!(known().count(), 0, "it has run out, and nobody asks");
    let silent = Duration::from_millis(4500);
    for _ in 0..3 {
        assert!(is(bench.get("a.example", silent, failure()).await, &["192.0.2.1"]));
        assert!(known().eq(all.clone()), "while it is asked for");
        sleep(silent).await;
        assert!(known().eq(all.clone()), "once that has failed");
        advance(Duration::from_secs(5)).await;
    }
    advance(5 * MINUTE).await;
    assert!(bench.get("a.example", silent, failure()).await.is_err());
    assert_eq!(known().count(), 0, "too old to stand in for anything");
}

#[tokio::test(start_paused = true)]
async fn refusals_are_remembered_for_five_seconds_at_most() {
    for reply in [answer(&[], 3600), failure()] {
        let bench = Bench::new(None);
        bench.now("a.example", reply.clone()).await.unwrap_err();
        advance(Duration::from_millis(4900)).await;
        bench.now("a.example", answer(&["192.0.2.1"], 60)).await.unwrap_err();
        assert_eq!(bench.asked(), 1);
        advance(Duration::from_millis(200)).await;
        assert!(is(bench.now("a.example", answer(&["192.0.2.1"], 60)).await, &["192.0.2.1"]));
    }
}

#[tokio::test(start_paused = true)]
async fn t41_at_most_64_addresses_are_kept() {
    let many = (0..100).map(|n| IpAddr::from([192, 0, 2, n])).collect::<Vec<_>>();
    let bench = Bench::new(None);
    let reply = Ok(Answer { addresses: many.clone(), ttl: MINUTE });
    assert_eq!(bench.now("a.example", reply).await.unwrap()[..], many[..64]);
}

#[tokio::test(start_paused = true)]
async fn t41_a_flood_of_names_is_bounded_and_does_not_evict_a_name_in_use() {
    let bench = Bench::new(None);
    bench.now("policy.example", answer(&["192.0.2.1"], 86_400)).await.unwrap();
    for n in 0..3 * MAX_NAMES {
        advance(Duration::from_millis(1)).await;
        let reply = if n % 2 == 0 { answer(&["192.0.2.2"], 3600) } else { failure() };
        let _ = bench.now(&format!("n{n}.flood.example"), reply).await;
        if n % 100 == 0 {
            bench.now("policy.example", failure()).await.unwrap();
        }
    }
    assert!(bench.cache.slots().len() <= MAX_NAMES);
    assert!(is(bench.now("policy.example", failure()).await, &["192.0.2.1"]));
    assert_eq!(bench.asked(), 1 + 3 * MAX_NAMES);
}

#[tokio::test]
async fn t64_a_panic_while_asking_is_a_failure_of_that_question_only() {
    let bench = Bench::new(None);
    let panicked = bench.cache.get(&host("a.example"), || async { panic!("on purpose") }).await;
    assert!(matches!(panicked, Err(ResolveError::Failed { .. })), "{panicked:?}");
    bench.cache.slots().clear();
    assert!(is(bench.now("a.example", answer(&["192.0.2.1"], 60)).await, &["192.0.2.1"]));
}
