//! What has to hold after each action, and at the end.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::load::{COUNTED, Kind, Needs, STEADY};
use super::stage::Stage;
use crate::process::Held;

/// From the end of an action to allowed traffic of each kind: 2 s (T-59). A build without optimisations
/// takes more than half of that to start, and several times as long where the machine is busy; the
/// report says how long it was.
pub const BACK: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(10) } else { Duration::from_secs(2) };
/// How long is waited for what is not back by then, so that a report says how long it took.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often each counted thing is done.
const TIMES: u64 = 20;
/// How long it may take until the log has all lines.
const WRITTEN: Duration = Duration::from_secs(4);
/// How long everything may take to be given back (threats, section 9).
const GIVEN_BACK: Duration = Duration::from_secs(30);

/// What was seen after an action.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// After how long the last kind of allowed traffic was back, and which.
    pub back: Option<(Duration, &'static str)>,
    /// What does not hold.
    pub violations: Vec<String>,
}

/// Remembers what was judged already.
#[derive(Debug, Default)]
pub struct Judge {
    packets: usize,
    requests: usize,
}

impl Judge {
    /// Judges what the action that just ended did to traffic and log; `more` is how much longer than
    /// [`BACK`] traffic may take.
    ///
    /// # Errors
    /// When it cannot look.
    pub fn after_action(&mut self, stage: &mut Stage<'_>, more: Duration) -> Result<Seen> {
        let mut seen = Seen::default();
        if let Some(code) = stage.running.ended()? {
            seen.violations.push(format!("the daemon ended with {code}: {}", said(stage)?));
            stage.start_again()?;
        }
        self.wait_for_all(stage, BACK + more, &mut seen)?;
        stage.running.wait_for_status()?;
        self.look_outside(stage, &mut seen)?;
        stage.lines.follow()?;
        seen.violations.extend(stage.lines.problems());
        seen.violations.extend(counters_add_up(stage)?);
        Ok(seen)
    }

    /// Until each kind of allowed traffic went well twice more.
    fn wait_for_all(&self, stage: &mut Stage<'_>, limit: Duration, seen: &mut Seen) -> Result<()> {
        let begun = Instant::now();
        let mut waiting: Vec<(&Kind, u64)> = Vec::new();
        for kind in STEADY.iter().filter(|kind| kind.needs != Needs::Leave) {
            waiting.push((kind, stage.inside.doing(&kind.key())?.count));
        }
        while !waiting.is_empty() && begun.elapsed() < PATIENCE {
            let mut still = Vec::new();
            for (kind, before) in waiting {
                // What was under way may have ended by what held before.
                if stage.inside.doing(&kind.key())?.count > before + 1 {
                    seen.back = Some((begun.elapsed(), kind.name));
                } else {
                    still.push((kind, before));
                }
            }
            waiting = still;
            sleep(Duration::from_millis(5));
        }
        for (kind, _) in &waiting {
            let doing = stage.inside.doing(&kind.key())?;
            seen.violations.push(format!("{}: not back after {PATIENCE:?}: {doing:?}", kind.name));
        }
        if let Some((took, name)) = seen.back
            && took > limit
        {
            seen.violations.push(format!("{name}: back after {} ms only", took.as_millis()));
        }
        if waiting.iter().any(|(kind, _)| kind.option == "--keep") {
            stage.begin_anew()?;
        }
        Ok(())
    }

    /// Nothing forbidden arrived out there.
    fn look_outside(&mut self, stage: &Stage<'_>, seen: &mut Seen) -> Result<()> {
        let packets = stage.capture.packets();
        if let Some(first) = packets.get(self.packets) {
            let count = packets.len() - self.packets;
            seen.violations.push(format!("{count} FORBIDDEN PACKETS, the first: {first:?}"));
        }
        self.packets = packets.len();
        let lost = stage.capture.lost()?;
        if lost > 0 {
            seen.violations.push(format!("the capture lost {lost} packets and proves nothing"));
        }
        let requests = stage.ground.world.seen();
        for request in requests.iter().skip(self.requests) {
            let names = [&request.host, request.sni.as_ref().unwrap_or(&request.host)];
            if names.iter().any(|name| ["forbidden.test", "counted.test"].contains(&name.as_str()))
            {
                seen.violations.push(format!("A FORBIDDEN REQUEST arrived: {request:?}"));
            }
        }
        self.requests = requests.len();
        Ok(())
    }
}

/// Does a known number of things of each kind while nothing is done to the daemon: the log has that
/// number of lines, no more and no fewer.
///
/// # Errors
/// When it cannot look.
pub fn count_lines(stage: &mut Stage<'_>) -> Result<Vec<String>> {
    stage.lines.follow()?;
    let mut problems = stage.lines.problems();
    let before = COUNTED.map(|kind| stage.lines.connections(kind.to()));
    let mut some = stage.some(&COUNTED, TIMES)?;
    some.wait(Duration::from_secs(60)).context("counted connections")?;
    for kind in COUNTED.iter().filter(|kind| kind.needs != Needs::Leave) {
        let done = some.doing(&kind.key())?;
        if done.count != TIMES {
            problems.push(format!("{}: {} of {TIMES} went well: {done:?}", kind.name, done.count));
        }
    }
    // The forbidden name is told from the one that is said all the time by no address.
    let exact = |kind: &Kind| !kind.place.contains("/counted.test");
    let deadline = Instant::now() + WRITTEN;
    loop {
        stage.lines.follow()?;
        problems.extend(stage.lines.problems());
        let counted = COUNTED.iter().zip(before);
        let counts: Vec<(&Kind, u64)> = counted
            .map(|(kind, before)| (kind, stage.lines.connections(kind.to()) - before))
            .collect();
        let wrong = |(kind, count): &&(&Kind, u64)| {
            if exact(kind) { *count != TIMES } else { *count < TIMES }
        };
        let over = Instant::now() > deadline;
        if counts.iter().all(|count| !wrong(&count)) || over {
            let wrong = counts.iter().filter(wrong);
            problems.extend(wrong.map(|(kind, count)| {
                format!("{}: the log tells of {count} connections, not of {TIMES}", kind.name)
            }));
            return Ok(problems);
        }
        sleep(Duration::from_millis(50));
    }
}

/// The records that the daemon counts are the lines in the log and those that it counts as lost. Not
/// asked of one that took another's place: both wrote.
fn counters_add_up(stage: &mut Stage<'_>) -> Result<Vec<String>> {
    let Some(lines_before) = stage.lines_before else { return Ok(Vec::new()) };
    let counts = |status: &Value| {
        let records = status["records"].as_object().into_iter().flatten();
        let records: u64 = records.filter_map(|(_, count)| count.as_u64()).sum();
        (records, status["access_log_dropped"].as_u64().unwrap_or(0))
    };
    let (least, lost_before) = counts(&stage.running.status()?);
    // What is counted is handed to the writer, which lets lines gather.
    sleep(Duration::from_millis(300));
    stage.lines.follow()?;
    let mut problems = stage.lines.problems();
    let lines = stage.lines.total() - lines_before;
    let (most, lost) = counts(&stage.running.status()?);
    if lines + lost < least || lines + lost_before > most {
        problems.push(format!(
            "{least} to {most} records, but {lines} lines in the log and {lost_before} to {lost} lost"
        ));
    }
    Ok(problems)
}

/// Waits until the daemon holds what it held `before`, at most a tenth more.
///
/// # Errors
/// When it cannot look.
pub fn given_back(stage: &Stage<'_>, before: Held) -> Result<(Held, Option<String>)> {
    let begun = Instant::now();
    loop {
        let now = Held::by(stage.running.pid())?;
        if now.is_like(before) {
            return Ok((now, None));
        }
        if begun.elapsed() > GIVEN_BACK {
            return Ok((
                now,
                Some(format!("after {GIVEN_BACK:?} it holds {now:?}, not {before:?}")),
            ));
        }
        sleep(Duration::from_millis(200));
    }
}

/// The end of what the daemon said.
fn said(stage: &mut Stage<'_>) -> Result<String> {
    let text = stage.running.stderr()?;
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(5)..].join(" | "))
}

/// With the product gone, what was forbidden gets out: it was tried, and only the product was in its
/// way.
///
/// # Errors
/// When a kind does not get out.
pub fn control(stage: Stage<'_>) -> Result<()> {
    let Stage { inside, running, capture, .. } = stage;
    running.stop()?;
    let deadline = Instant::now() + PATIENCE;
    for kind in STEADY.iter().filter(|kind| kind.needs == Needs::Leave) {
        let to = kind.to();
        let arrived = |udp: bool| {
            capture.packets().iter().any(|packet| {
                let protocol = if udp { 17 } else { 6 };
                packet.protocol == protocol
                    && (packet.destination, packet.destination_port) == (to.ip(), to.port())
            })
        };
        while !arrived(kind.option == "--datagrams") {
            let doing = inside.doing(&kind.key())?;
            anyhow::ensure!(
                Instant::now() < deadline,
                "control: {} is not tried: {doing:?}",
                kind.name
            );
            sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}
