//! Rounds: each visits every place in turn, so that what disturbs the machine disturbs all.

use anyhow::{Context, Result};

use crate::check::{self, Before};
use crate::job::{Job, Report, Until};
use crate::machine::{busy_seconds, processor_seconds};
use crate::place::Place;
use crate::report::Row;
use crate::scenario::Scenario;
use crate::stats::{Better, median, ratio, spread};

/// How long and how often is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Rounds.
    pub(crate) rounds: usize,
    /// Milliseconds at each place in each round.
    pub(crate) milliseconds: u64,
}

/// One round at one place. Processor time is in seconds per GiB or per 1,000 operations.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Operations (for bulk: MiB) a second.
    rate: f64,
    p50: f64,
    p99: f64,
    cpu_proxy: f64,
    cpu_all: f64,
}

impl Sample {
    fn figure(&self, better: Better) -> f64 {
        match better {
            Better::More => self.rate,
            Better::Less => self.p50,
        }
    }
}

/// Checks and measures a scenario. What goes wrong at one place is told, and ends it there; without
/// the first place, which is the one to compare with, there are no figures at all.
pub(crate) fn run(
    scenario: &Scenario,
    places: Vec<&mut Place>,
    pace: Pace,
    failures: &mut Vec<String>,
) -> Vec<Row> {
    let mut told = |place: &Place, error: anyhow::Error| {
        let kind = place.kind();
        let tier = scenario.tier(kind);
        failures.push(format!("{}, tier {tier}, {kind}: {error:#}", scenario.id));
    };
    let mut racers: Vec<(&mut Place, Before, Vec<Sample>)> = Vec::new();
    for place in places {
        match check::before(place, scenario).context("the check before measuring failed") {
            Ok(before) => racers.push((place, before, Vec::new())),
            Err(error) => told(place, error),
        }
    }
    for round in 0..pace.rounds {
        let count = racers.len();
        let mut left = Vec::new();
        for turn in 0..count {
            // Nobody always comes first, or always after the same neighbour's garbage.
            let (place, before, samples) = &mut racers[(turn + round) % count];
            let job = scenario.job(place.kind(), Until::Milliseconds(pace.milliseconds));
            match sample(place, &job, scenario.per_gib(), before) {
                Ok(sample) => samples.push(sample),
                Err(error) => {
                    told(place, error);
                    left.push(place.kind());
                }
            }
        }
        racers.retain(|(place, _, _)| !left.contains(&place.kind()));
    }
    racers.retain(|(place, before, _)| {
        let checked = check::after(place, scenario, before);
        let checked = checked.context("the check after measuring failed");
        let held = checked.is_ok();
        if let Err(error) = checked {
            told(place, error);
        }
        held
    });
    let direct = racers.iter().find(|(place, _, _)| place.processes().is_empty());
    let Some((_, _, direct)) = direct else { return Vec::new() };
    let row = |(place, _, samples): &(&mut Place, Before, Vec<Sample>)| {
        row(scenario, place, samples, direct)
    };
    racers.iter().map(row).collect()
}

/// Does one job and counts what it took.
fn sample(place: &mut Place, job: &Job, per_gib: bool, before: &mut Before) -> Result<Sample> {
    let processes = place.processes();
    let (proxy, all) = (processor_seconds(&processes)?, busy_seconds()?);
    let report = place.run(job)?;
    let (proxy, all) = (processor_seconds(&processes)? - proxy, busy_seconds()? - all);
    before.add(&report);
    check::done(job, &report)?;
    Ok(figures(&report, per_gib, proxy, all))
}

fn figures(report: &Report, per_gib: bool, proxy: f64, all: f64) -> Sample {
    let (amount, unit) = if per_gib {
        (report.bytes as f64 / f64::from(1 << 20), 1024.0)
    } else {
        (report.operations as f64, 1000.0)
    };
    Sample {
        rate: amount / report.seconds,
        p50: report.p50_us,
        p99: report.p99_us,
        cpu_proxy: proxy / amount * unit,
        cpu_all: all / amount * unit,
    }
}

/// Medians over rounds; ratios and differences against the same round at the direct place.
fn row(scenario: &Scenario, place: &Place, samples: &[Sample], direct: &[Sample]) -> Row {
    let each = |figure: fn(&Sample) -> f64| -> Vec<f64> { samples.iter().map(figure).collect() };
    let added = |figure: fn(&Sample) -> f64| -> f64 {
        let pairs = samples.iter().zip(direct);
        median(&pairs.map(|(ours, direct)| figure(ours) - figure(direct)).collect::<Vec<_>>())
    };
    let ratios: Vec<f64> = samples
        .iter()
        .zip(direct)
        .map(|(ours, direct)| {
            let better = scenario.better;
            ratio(better, ours.figure(better), direct.figure(better))
        })
        .collect();
    Row {
        ratio: Some(median(&ratios)),
        spread: Some(spread(&ratios)),
        rate: Some(median(&each(|s| s.rate))),
        rate_unit: Some(if scenario.per_gib() { "MiB/s" } else { "1/s" }),
        cpu_proxy: Some(median(&each(|s| s.cpu_proxy))),
        cpu_all: Some(median(&each(|s| s.cpu_all))),
        cpu_added: Some(added(|s| s.cpu_all)),
        cpu_per: Some(if scenario.per_gib() { "GiB" } else { "1000" }),
        p50_us: Some(median(&each(|s| s.p50))),
        p99_us: Some(median(&each(|s| s.p99))),
        added_p50_us: Some(added(|s| s.p50)),
        added_p99_us: Some(added(|s| s.p99)),
        rounds: samples.len(),
        ..Row::new(scenario.id, scenario.tier(place.kind()), place.kind().peer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_per_gib_or_per_thousand() {
        let report = Report { operations: 512, bytes: 2 << 30, seconds: 2.0, ..Report::default() };
        let bulk = figures(&report, true, 1.0, 3.0);
        assert_eq!((bulk.rate, bulk.cpu_proxy, bulk.cpu_all), (1024.0, 0.5, 1.5));
        let each = figures(&report, false, 0.512, 1.024);
        assert_eq!((each.rate, each.cpu_proxy, each.cpu_all), (256.0, 1.0, 2.0));
    }
}
