//! Memory of idle connections: a fresh program, a few connections to warm it up, then a thousand.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::check;
use crate::job::{Until, Work};
use crate::machine::resident_kib;
use crate::place::{Kind, Place, Tools};
use crate::report::Row;
use crate::scenario::{IDLE, Service};
use crate::stats::{median, spread};

/// Workers that open connections; each holds its share.
const WORKERS: u64 = 8;
/// Connections that are held.
const HELD: u64 = 1000;
/// Connections before that, closed again.
const WARM: u64 = 48;
/// For memory to settle: what is idle for a while may give back what it held.
const SETTLE: Duration = Duration::from_millis(2500);

/// Measures the programs at these places, each as often as there are rounds.
pub(crate) fn run(
    kinds: &[Kind],
    tools: &Tools,
    rounds: usize,
    failures: &mut Vec<String>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for service in [Service::Tls, Service::Http] {
        for kind in kinds {
            let skipped = match kind {
                Kind::Direct | Kind::Bypass => true,
                Kind::Name => service == Service::Http,
                _ => false,
            };
            if skipped {
                continue;
            }
            let tier = kind.tier(service);
            match (0..rounds).map(|_| once(*kind, service, tools)).collect::<Result<Vec<_>>>() {
                Ok(results) => rows.push(row(tier, *kind, &results)),
                Err(error) => failures.push(format!("{IDLE}, tier {tier}, {kind}: {error:#}")),
            }
        }
    }
    rows
}

/// Memory in KiB before and per held connection.
fn once(kind: Kind, service: Service, tools: &Tools) -> Result<(f64, f64)> {
    let mut place = Place::set_up(kind, tools)?;
    let hold = |place: &mut Place, count: u64| -> Result<f64> {
        let until = Until::Operations(count / WORKERS);
        let job = service.job(kind, Work::Hold, usize::try_from(WORKERS)?, until);
        let report = place.run(&job)?;
        check::done(&job, &report)?;
        thread::sleep(SETTLE);
        Ok(resident_kib(&place.processes())? as f64)
    };
    hold(&mut place, WARM).context("warming up")?;
    // The next job lets go of those; so does one that opens a single connection.
    let before = hold(&mut place, WORKERS)?;
    let after = hold(&mut place, HELD)?;
    Ok((before, (after - before) / HELD as f64))
}

fn row(tier: &'static str, kind: Kind, results: &[(f64, f64)]) -> Row {
    let before: Vec<f64> = results.iter().map(|(before, _)| *before).collect();
    let each: Vec<f64> = results.iter().map(|(_, each)| *each).collect();
    Row {
        spread: Some(spread(&each)),
        rss_mib: Some(median(&before) / 1024.0),
        kib_per_connection: Some(median(&each)),
        rounds: results.len(),
        ..Row::new(IDLE, tier, kind.peer())
    }
}
