//! Before figures are believed: did the bytes come, by the way that is claimed, and is what is
//! forbidden refused there? The verdicts are pure; [`before`] and [`after`] gather what they judge.

use anyhow::{Context, Result, bail};
use interceptor_tests::log::Line;

use crate::job::{Job, Report, Until};
use crate::place::{Flows, Place};
use crate::scenario::{FORBIDDEN, Scenario, Service};

/// What a place counted before a scenario; [`after`] compares with it.
#[derive(Debug)]
pub(crate) struct Before {
    flows: Option<Flows>,
    log: u64,
    connections: u64,
    operations: u64,
}

impl Before {
    /// Notes what a measured job added.
    pub(crate) fn add(&mut self, report: &Report) {
        self.connections += report.connections;
        self.operations += report.operations;
    }
}

/// A few operations of the scenario and what must be refused, each judged by log and counters.
pub(crate) fn before(place: &mut Place, scenario: &Scenario) -> Result<Before> {
    if let Some(job) = scenario.forbidden(place.kind()) {
        let start = place.log_end();
        refused(place, &job).with_context(|| format!("{FORBIDDEN} (or an address of nobody)"))?;
        // Its line must not be taken for one of those that are counted next.
        if place.kind().is_ours() && place.log_since(start, 1).is_empty() {
            bail!("the refusal of {FORBIDDEN} left no line in the access log");
        }
    }
    let mut before =
        Before { flows: place.flows()?, log: place.log_end(), connections: 0, operations: 0 };
    let job = scenario.sample(place.kind());
    let report = place.run(&job)?;
    done(&job, &report)?;
    before.add(&report);
    let count = if scenario.by_connection() { report.connections } else { report.operations };
    let lines = place.log_since(before.log, count);
    if place.kind().is_ours() {
        let tier = scenario.tier(place.kind());
        lines_show(tier, scenario.service(), scenario.refuses(), count, &lines)?;
    }
    after(place, scenario, &before)?;
    Ok(before)
}

/// All connections since `before` took the way that the scenario's figures are claimed for.
pub(crate) fn after(place: &Place, scenario: &Scenario, before: &Before) -> Result<()> {
    let kind = place.kind();
    if let (Some(now), Some(then)) = (place.flows()?, before.flows) {
        flows_took(scenario.tier(kind), before.connections, now.since(then))?;
    } else if !place.processes().is_empty() && !scenario.refuses() {
        let count = if scenario.by_connection() { before.connections } else { before.operations };
        let lines = place.log_since(before.log, count);
        let found = lines.iter().filter(|line| line.contains(scenario.service().host())).count();
        peer_logged(count, found as u64).with_context(|| kind.to_string())?;
    }
    Ok(())
}

/// Whether a peer's log shows that all passed through it. A few lines may be missing of many: HAProxy
/// drops lines that two threads write at the same time. Past a redirection go all or none.
fn peer_logged(count: u64, found: u64) -> Result<()> {
    if found * 100 < count * 98 {
        bail!("{count} went out, but its log has {found}: did all pass through it?");
    }
    Ok(())
}

/// A job that must be refused: TLS and TCP by an end without a byte, HTTP by another answer.
fn refused(place: &mut Place, job: &Job) -> Result<()> {
    let report = place.run(job)?;
    match (job.work, report.failure) {
        (crate::job::Work::Request, Some(failure)) if failure.contains("status") => Ok(()),
        (crate::job::Work::Request, None) => bail!("it was answered and should have been refused"),
        (_, None) => Ok(()),
        (_, Some(failure)) => bail!("{failure}"),
    }
}

/// Whether a job did all that it was asked for.
pub(crate) fn done(job: &Job, report: &Report) -> Result<()> {
    if let Some(failure) = &report.failure {
        bail!("{:?} to {} ({}): {failure}", job.work, job.to, job.name);
    }
    let asked = match job.until {
        Until::Operations(each) => each * job.at_once as u64,
        Until::Milliseconds(_) => 1,
    };
    if report.operations < asked {
        bail!("{} operations of {asked} were done", report.operations);
    }
    Ok(())
}

/// Whether so many connections all took this tier, and no other.
fn flows_took(tier: &str, connections: u64, flows: Flows) -> Result<()> {
    let nothing = Flows::default();
    let expected = match tier {
        "bypass" => Flows { bypass: connections, ..nothing },
        "name" => Flows { name: connections, ..nothing },
        _ => Flows { proxy: connections, ..nothing },
    };
    if flows != expected {
        bail!("{connections} connections should have taken the tier {tier}; they took {flows:?}");
    }
    Ok(())
}

/// Whether each log line is one of this tier: its cluster, and who holds the upstream's socket.
fn lines_show(
    tier: &str,
    service: Service,
    refused: bool,
    count: u64,
    lines: &[String],
) -> Result<()> {
    if lines.len() as u64 != count {
        bail!("{} lines in the access log instead of {count}", lines.len());
    }
    let cluster = match (tier, refused) {
        (_, true) => "BlackHoleCluster".to_owned(),
        ("bypass", _) => "BypassCluster".to_owned(),
        _ => format!("outbound|{}||{}", service.port(), service.host()),
    };
    let host = if refused { FORBIDDEN } else { service.host() };
    for text in lines {
        let line = Line::parse(text).map_err(anyhow::Error::msg)?;
        let found = line.field("UPSTREAM_CLUSTER_RAW");
        if found != cluster {
            bail!("the access log says {found} where {cluster} was expected: {text}");
        }
        if service == Service::Tls
            && tier != "bypass"
            && line.field("REQUESTED_SERVER_NAME") != host
        {
            bail!("the access log has another name than {host}: {text}");
        }
        let own = line.field("UPSTREAM_LOCAL_ADDRESS") == line.field("DOWNSTREAM_REMOTE_ADDRESS");
        let direct = matches!(tier, "bypass" | "name");
        if !refused && own != direct {
            bail!("the upstream's socket is not who the tier {tier} says: {text}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Work;
    use crate::place::Kind;

    fn line(cluster: &str, from: &str) -> String {
        format!(
            r#"[2026-01-01T00:00:00.000Z] "- - -" 0 - - - "-" 1 1 1 - "-" "-" "-" "-" "203.0.113.10:443" {cluster} {from} 203.0.113.10:443 10.77.0.2:1000 tls.bench -"#
        )
    }

    const OWN: &str = "10.77.0.2:1000";
    const OTHER: &str = "10.77.0.2:2000";
    const ALLOWED: &str = "outbound|443||tls.bench";

    #[test]
    fn each_tier_has_its_line_and_no_other_tier_passes_for_it() {
        let right = [
            ("bypass", line("BypassCluster", OWN)),
            ("name", line(ALLOWED, OWN)),
            ("relay", line(ALLOWED, OTHER)),
        ];
        for (claimed, _) in &right {
            for (real, line) in &right {
                let lines = std::slice::from_ref(line);
                let shown = lines_show(claimed, Service::Tls, false, 1, lines);
                assert_eq!(shown.is_ok(), claimed == real, "{claimed} shown by {real}: {shown:?}");
            }
        }
    }

    #[test]
    fn a_missing_line_and_a_refusal_are_noticed() {
        let refused = line("BlackHoleCluster", "-");
        assert!(lines_show("name", Service::Tls, false, 1, &[]).is_err());
        let error = lines_show("name", Service::Tls, false, 1, &[refused]).expect_err("refused");
        assert!(error.to_string().contains("BlackHoleCluster"), "{error}");
    }

    #[test]
    fn one_connection_that_took_another_way_is_one_too_many() {
        let flows = Flows { name: 9, proxy: 1, ..Flows::default() };
        let error = flows_took("name", 10, flows).expect_err("one by the proxy").to_string();
        assert!(error.contains("tier name") && error.contains("proxy: 1"), "{error}");
        assert!(flows_took("name", 9, Flows { proxy: 0, ..flows }).is_ok());
        assert!(flows_took("relay", 9, Flows { proxy: 0, ..flows }).is_err());
    }

    #[test]
    fn a_peer_may_lose_a_few_lines_of_many_and_none_of_few() {
        assert!(peer_logged(130_447, 130_222).is_ok());
        assert!(peer_logged(3, 3).is_ok());
        for (count, found) in [(1, 0), (6, 5), (1000, 979)] {
            assert!(peer_logged(count, found).is_err(), "{found} of {count}");
        }
    }

    #[test]
    fn a_job_that_failed_or_fell_short_is_not_done() {
        let job = Service::Tls.job(Kind::Direct, Work::Connect, 2, Until::Operations(3));
        let report = Report { operations: 6, ..Report::default() };
        assert!(done(&job, &report).is_ok());
        assert!(done(&job, &Report { operations: 5, ..report.clone() }).is_err());
        let failed = Report { failure: Some("reset".into()), ..report };
        assert!(done(&job, &failed).expect_err("failed").to_string().contains("reset"));
    }
}
