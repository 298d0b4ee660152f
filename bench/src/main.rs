//! The benchmark: interceptor's tiers and its peers against no interception, in one run.
//!
//! Each place ([`place`]) is a small internet of its own. A scenario ([`scenario`]) is checked
//! ([`check`]) and then measured in rounds that visit all places in turn ([`rounds`]). Load
//! generator and servers are this program too ([`load`], [`serve`]).

mod chart;
mod check;
mod client;
mod idle;
mod job;
mod large;
mod load;
mod machine;
mod peers;
mod place;
mod policy;
mod report;
mod rounds;
mod scenario;
mod serve;
mod stats;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::peers::Peers;
use crate::place::{Breakage, Kind, Place, Tools};
use crate::report::Run;
use crate::rounds::Pace;
use crate::scenario::{IDLE, IN_ROUNDS, POLICIES, Scenario};

/// Measure interceptor's tiers and its peers against no interception
#[derive(Parser)]
#[command(name = "interceptor-bench")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Run(Box<RunArgs>),
    /// Be the load generator: jobs on standard input
    #[command(hide = true)]
    Load {
        /// The certificate authority to believe
        authority: PathBuf,
    },
}

/// Measure (as root)
#[derive(clap::Args)]
struct RunArgs {
    /// Scenarios; all when none is named
    #[arg(value_parser = scenario::ids())]
    scenarios: Vec<String>,
    /// Whom to compare with; `direct` always takes part, since ratios are to it
    #[arg(long, value_delimiter = ',', value_parser = ["envoy", "haproxy", "nginx", "direct"],
          default_values = ["envoy", "haproxy", "nginx", "direct"])]
    against: Vec<String>,
    /// Few and short rounds: a first look, not figures to quote
    #[arg(long)]
    quick: bool,
    /// Rounds of each scenario [default: 7; quick: 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// Write the results here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios here
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Put the tables into this document, between `<!-- results -->` and `<!-- end -->`
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// interceptor's program, built with optimisations
    #[arg(long, value_name = "FILE")]
    interceptor: PathBuf,
    /// A Python environment in which to look for Envoy
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    peers: PathBuf,
    /// Set interceptor up wrongly, to see that the checks find it
    #[arg(long = "break", value_name = "WHAT")]
    breakage: Option<Breakage>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Verb::Run(args) => run(&args),
        Verb::Load { authority } => load::serve_jobs(&authority).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("interceptor-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures what was asked for; whether all of it held.
fn run(args: &RunArgs) -> Result<bool> {
    // For servers of many connections, and for peers, which inherit it.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let wanted: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| args.against.iter().any(|a| a == kind.peer()))
        .collect();
    let tools = Tools {
        own: std::env::current_exe()?,
        interceptor: fs::canonicalize(&args.interceptor)
            .with_context(|| args.interceptor.display().to_string())?,
        peers: Peers::find(&wanted, &fs::canonicalize(&args.peers).unwrap_or_default()),
        breakage: args.breakage,
    };
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.is_ours() || *kind == Kind::Direct || tools.peers.have(*kind))
        .collect();
    let pace = Pace {
        rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 7 }).max(1),
        milliseconds: if args.quick { 150 } else { 1000 },
    };
    let missing = tools.peers.missing.iter();
    let mut results = Run {
        machine: machine::description(),
        versions: tools.peers.versions(),
        rounds: pace.rounds,
        milliseconds: pace.milliseconds,
        skipped: missing.map(|(kind, get)| format!("{kind} is not installed: {get}")).collect(),
        failures: Vec::new(),
        rows: Vec::new(),
    };
    for skipped in &results.skipped {
        eprintln!("skipped: {skipped}");
    }
    measure(args, &kinds, &tools, pace, &mut results)?;

    print!("{}", results.tables());
    if let Some(path) = &args.json {
        write(path, &(serde_json::to_string_pretty(&results)? + "\n"))?;
    }
    for failure in &results.failures {
        eprintln!("FAILED: {failure}");
    }
    if !results.failures.is_empty() {
        // Half a run is nothing to show.
        return Ok(false);
    }
    if let Some(path) = &args.chart {
        write(path, &chart::svg(&results))?;
    }
    if let Some(path) = &args.document {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        write(path, &replaced(&text, &results.tables())?)?;
    }
    Ok(true)
}

fn measure(
    args: &RunArgs,
    kinds: &[Kind],
    tools: &Tools,
    pace: Pace,
    results: &mut Run,
) -> Result<()> {
    let asked =
        |id: &str| args.scenarios.is_empty() || args.scenarios.iter().any(|asked| asked == id);
    let policies = POLICIES.into_iter().filter(|(id, _)| asked(id)).collect::<Vec<_>>();
    let in_rounds: Vec<&Scenario> = IN_ROUNDS.iter().filter(|s| asked(s.id)).collect();

    if asked(IDLE) {
        eprintln!("{IDLE} …");
        let rounds = if args.quick { 1 } else { pace.rounds.min(3) };
        results.rows.extend(idle::run(kinds, tools, rounds, &mut results.failures));
    }
    let takes = |kind: Kind| {
        in_rounds.iter().any(|s| s.takes(kind)) || (kind == Kind::Direct && !policies.is_empty())
    };
    let mut places = Vec::new();
    for kind in kinds.iter().copied().filter(|kind| takes(*kind)) {
        match Place::set_up(kind, tools) {
            Ok(place) => places.push(place),
            Err(error) => results.failures.push(format!("{kind} cannot be set up: {error:#}")),
        }
    }
    for scenario in in_rounds {
        eprintln!("{} …", scenario.id);
        let taking = places.iter_mut().filter(|place| scenario.takes(place.kind())).collect();
        results.rows.extend(rounds::run(scenario, taking, pace, &mut results.failures));
    }
    let Some(direct) = places.iter_mut().find(|place| place.kind() == Kind::Direct) else {
        return Ok(());
    };
    for (id, hosts) in policies {
        for kind in [Kind::Name, Kind::Envoy] {
            let slow = args.quick && kind == Kind::Envoy && hosts > 1000;
            if slow || !kinds.contains(&kind) {
                continue;
            }
            eprintln!("{id}, {kind} …");
            match large::run(id, hosts, kind, tools, direct, pace) {
                Ok(row) => results.rows.push(row),
                Err(error) => results.failures.push(format!("{id}, {kind}: {error:#}")),
            }
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// A document with other results in it.
fn replaced(document: &str, results: &str) -> Result<String> {
    const BEGIN: &str = "<!-- results -->\n";
    const END: &str = "<!-- end -->";
    let parts = document.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let Some((before, after)) = parts else {
        bail!("the document has no lines `{}` and `{END}` to put results between", BEGIN.trim());
    };
    Ok(format!("{before}{BEGIN}\n{results}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_replace_results_and_nothing_else() {
        let document = "before\n<!-- results -->\nold\n<!-- end -->\nafter\n";
        let new = replaced(document, "new").expect("both lines are there");
        assert_eq!(new, "before\n<!-- results -->\n\nnew\n<!-- end -->\nafter\n");
        assert!(replaced("before\nafter\n", "new").is_err());
    }

    #[test]
    fn the_command_line_is_as_promised() {
        let line = "interceptor-bench run rtt-64 idle-1000 --against envoy,direct --quick --json f --interceptor i";
        let Verb::Run(args) = Cli::parse_from(line.split(' ')).command else { panic!("run") };
        assert_eq!(args.scenarios, ["rtt-64", "idle-1000"]);
        assert_eq!(args.against, ["envoy", "direct"]);
        assert!(args.quick && args.json.is_some());
        assert!(Cli::try_parse_from("interceptor-bench run nosuch".split(' ')).is_err());
    }
}
