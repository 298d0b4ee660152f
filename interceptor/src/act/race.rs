//! Happy eyeballs (RFC 8305): candidates tried a moment apart, all still in the race, first to
//! connect wins. Knows nothing of sockets.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

/// Nobody won.
#[derive(Debug)]
pub(super) struct Lost<C, E> {
    /// The candidate tried last; `None` if there was none.
    pub(super) tried: Option<C>,
    /// The last failure; `None`: the deadline came, or there was no candidate.
    pub(super) failure: Option<E>,
}

/// Connects to the first of `candidates`, and to the next one whenever `stagger` has passed or a
/// try has failed; nobody leaves the race before it is won. `more` gives further candidates; it is
/// only polled once all of `candidates` were tried and another one is wanted.
///
/// # Errors
/// [`Lost`]: everyone failed, or `deadline` came.
pub(super) async fn race<C: Copy, T, E, F: Future<Output = Result<T, E>>>(
    candidates: Vec<C>,
    more: impl Future<Output = Vec<C>>,
    stagger: Duration,
    deadline: Instant,
    connect: impl Fn(C) -> F,
) -> Result<(C, T), Lost<C, E>> {
    let mut queue = VecDeque::from(candidates);
    let mut more = pin!(more);
    let mut may_be_more = true;
    let mut running = FuturesUnordered::new();
    let mut tried = None;
    let mut failure = None;
    // The start of the next try, and whether that moment has come.
    let mut next_start = Instant::now();
    let mut wanted = true;
    loop {
        if wanted && let Some(candidate) = queue.pop_front() {
            tried = Some(candidate);
            let attempt = connect(candidate);
            running.push(async move { (candidate, attempt.await) });
            next_start = Instant::now() + stagger;
            wanted = false;
        }
        if running.is_empty() && queue.is_empty() && !may_be_more {
            return Err(Lost { tried, failure });
        }
        tokio::select! {
            biased;
            Some((candidate, result)) = running.next(), if !running.is_empty() => match result {
                Ok(connected) => return Ok((candidate, connected)),
                Err(error) => {
                    failure = Some(error);
                    tried = Some(candidate);
                    wanted = true;
                }
            },
            found = &mut more, if wanted && queue.is_empty() && may_be_more => {
                queue.extend(found);
                may_be_more = false;
            }
            () = sleep_until(next_start), if !wanted => wanted = true,
            () = sleep_until(deadline) => {
                return Err(Lost { tried, failure: None });
            }
        }
    }
}

/// Puts `addresses` in the order of RFC 8305 section 4: the families take turns, the first
/// address's family begins, and each family keeps its own order.
pub(super) fn alternate_families(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().copied() else { return addresses };
    let (same, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first.is_ipv4());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut ordered = Vec::with_capacity(same.len() + other.len());
    loop {
        let before = ordered.len();
        ordered.extend(same.next());
        ordered.extend(other.next());
        if ordered.len() == before {
            return ordered;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::{pending, ready};
    use std::io;

    use tokio::time::sleep;

    use super::*;

    const STAGGER: Duration = Duration::from_millis(250);

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Races with a connect that takes `at` milliseconds and then gives `Ok` or an error; returns
    /// the winner, the milliseconds it took, and when each try began.
    async fn run(
        candidates: &[&str],
        more: &[&str],
        plan: impl Fn(&str) -> (u64, Result<(), io::ErrorKind>),
    ) -> (Result<String, (String, io::ErrorKind)>, u128, Vec<(String, u128)>) {
        let start = Instant::now();
        let tries = RefCell::new(Vec::new());
        let more = ready(addresses(more));
        let deadline = start + Duration::from_secs(10);
        let result = race(addresses(candidates), more, STAGGER, deadline, |address| {
            tries.borrow_mut().push((address.to_string(), start.elapsed().as_millis()));
            let (after, result) = plan(&address.to_string());
            async move {
                sleep(Duration::from_millis(after)).await;
                result.map_err(io::Error::from)
            }
        })
        .await;
        let result = result.map(|(winner, ())| winner.to_string()).map_err(|lost| {
            let late = io::ErrorKind::TimedOut;
            (lost.tried.unwrap().to_string(), lost.failure.map_or(late, |error| error.kind()))
        });
        (result, start.elapsed().as_millis(), tries.into_inner())
    }

    const A: &str = "192.0.2.1:1";
    const B: &str = "[2001:db8::1]:1";
    const C: &str = "192.0.2.2:1";
    const NEVER: (u64, Result<(), io::ErrorKind>) = (u64::MAX / 2_000_000, Ok(()));
    const REFUSED: io::ErrorKind = io::ErrorKind::ConnectionRefused;

    #[tokio::test(start_paused = true)]
    async fn a_quick_first_candidate_is_the_only_one_tried() {
        let (won, took, tries) = run(&[A, B], &[C], |_| (200, Ok(()))).await;
        assert_eq!((won, took), (Ok(A.into()), 200));
        assert_eq!(tries, [(A.into(), 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_family_costs_250_ms() {
        let (won, took, _) =
            run(&[A, B], &[], |at| if at == A { NEVER } else { (10, Ok(())) }).await;
        assert_eq!((won, took), (Ok(B.into()), 260));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_starts_the_next_at_once_and_more_are_asked_for_when_needed() {
        let plan = |at: &str| if at == C { (5, Ok(())) } else { (10, Err(REFUSED)) };
        let (won, took, tries) = run(&[A], &[B, C], plan).await;
        assert_eq!((won, took), (Ok(C.into()), 25));
        assert_eq!(tries, [(A.into(), 0), (B.into(), 10), (C.into(), 20)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_stays_in_the_race() {
        let plan = |at: &str| if at == A { (600, Ok(())) } else { NEVER };
        let (won, took, tries) = run(&[A], &[B, C], plan).await;
        assert_eq!((won, took), (Ok(A.into()), 600));
        assert_eq!(tries, [(A.into(), 0), (B.into(), 250), (C.into(), 500)]);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_further_candidates_do_not_hold_up_the_first() {
        let deadline = Instant::now() + Duration::from_secs(10);
        let won = race(addresses(&[A]), pending(), STAGGER, deadline, |_| async {
            sleep(Duration::from_millis(700)).await;
            io::Result::Ok(())
        });
        assert_eq!(won.await.unwrap().0, addresses(&[A])[0]);
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_the_last_failure_is_told_at_once() {
        let (lost, took, _) = run(&[A, B], &[], |_| (10, Err(REFUSED))).await;
        assert_eq!((lost, took), (Err((B.into(), REFUSED)), 20));
    }

    #[tokio::test(start_paused = true)]
    async fn mesh6_the_deadline_bounds_the_whole_race() {
        let (lost, took, _) = run(&[A, B], &[C], |_| NEVER).await;
        assert_eq!((lost, took), (Err((C.into(), io::ErrorKind::TimedOut)), 10_000));
    }

    #[test]
    fn families_take_turns() {
        let cases: [(&[&str], &[&str]); 4] =
            [(&[], &[]), (&[A, C, B], &[A, B, C]), (&[B, A, C], &[B, A, C]), (&[A, C], &[A, C])];
        for (given, expected) in cases {
            assert_eq!(alternate_families(addresses(given)), addresses(expected));
        }
    }
}
