//! Policy tests: scenario files (format `egress-scenario/1`) through the real loader, the real
//! decisions and the real log writer, and a small model of the world for what lies beyond.
//! docs/policy-tests.md is the user's view of it.
//!
//! `file` reads cases, `client` makes the bytes that they send, `flow` takes them through the doors
//! in the order of `conn`, `carry` and `exchange` carry decisions out in the `world` (`cors` and `tls`
//! are parts of that), and `compare` compares.

mod carry;
mod case;
mod client;
mod compare;
mod cors;
mod exchange;
mod expect;
mod file;
mod flow;
mod observed;
mod report;
mod series;
#[cfg(test)]
mod tests;
mod tls;
mod world;

use std::path::PathBuf;
use std::time::Duration;

pub use self::case::Case;
pub use self::compare::Difference;
pub use self::file::{Unreadable, read};
pub use self::report::{junit, text};

use self::case::{Flow, Kind, Layer, Network, Question, Setting};
use self::expect::Expect;
use self::flow::Site;
use self::world::{Habits, World};
use crate::policy::{Caller, Enforcement, LoadErrors, Loaded, Notice, Sources, load};
use crate::workloads::annotations::CaptureLists;

/// Requests of a case that asks for shares and does not say of how many (README of the format).
const SHARED_REPEAT: u32 = 1000;

/// What is wrong with a case that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The case itself, or its resources, cannot be used.
    Broken(String),
    /// It came out otherwise.
    Differs(Vec<Difference>),
}

/// Runs one case under `profile`. Needs no privilege, opens nothing, resolves nothing.
///
/// # Errors
/// [`Fault`]: the case did not pass.
pub fn run(case: &Case, profile: Enforcement) -> Result<(), Fault> {
    run_by(case, profile, &rules)
}

/// Where the rules of a case come from.
type RulesOf<'r> = dyn Fn(&Setting, Enforcement) -> Result<Loaded, LoadErrors> + 'r;

fn run_by(case: &Case, profile: Enforcement, rules: &RulesOf<'_>) -> Result<(), Fault> {
    let question = case.question.as_ref().map_err(|error| Fault::Broken(error.clone()))?;
    let Question { setting, kind, expect } = question;
    let differences = match kind {
        Kind::Validation(layer) => validate(setting, *layer, expect, profile),
        Kind::Flow { network, flow } => {
            judge(rules(setting, profile), setting, network, flow, expect, profile)?
        }
    };
    if differences.is_empty() { Ok(()) } else { Err(Fault::Differs(differences)) }
}

/// Loads the case's rules for its caller.
fn rules(setting: &Setting, profile: Enforcement) -> Result<Loaded, LoadErrors> {
    let named = |(index, resource): (usize, &serde_json::Value)| {
        (PathBuf::from(format!("resources[{index}]")), resource.to_string())
    };
    let mesh =
        || (PathBuf::from("mesh"), serde_json::Value::Object(setting.mesh.clone()).to_string());
    let sources = Sources {
        // JSON is YAML.
        texts: setting.resources.iter().enumerate().map(named).collect(),
        mesh_text: (!setting.mesh.is_empty()).then(mesh),
        enforcement: Some(profile),
        dns_capture: setting.dns_capture,
        gateway: setting.gateway,
        ..Sources::default()
    };
    let labels = setting.workload.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
    let namespace = setting.workload.namespace.clone();
    load(&sources, &Caller { namespace, labels: labels.collect() })
}

/// Whether the loader takes the case's resources, and what it says.
fn validate(
    setting: &Setting,
    layer: Layer,
    expect: &Expect,
    profile: Enforcement,
) -> Vec<Difference> {
    let (refusals, warnings) = match layer {
        Layer::PodAnnotation => {
            let lists = CaptureLists::from_values(&setting.values)
                .and_then(|lists| lists.replaced_by(&setting.workload.annotations));
            (lists.err().map(|bad| bad.to_string()).into_iter().collect(), Vec::new())
        }
        Layer::Webhook | Layer::Crd | Layer::Meshconfig => match rules(setting, profile) {
            Ok(loaded) => {
                let about = |notice: &&Notice| {
                    let mesh = notice.place.file.starts_with("mesh");
                    notice.is_istios() && mesh == (layer == Layer::Meshconfig)
                };
                let say = |notice: &Notice| notice.to_string();
                (
                    loaded.rejected.iter().map(say).collect::<Vec<_>>(),
                    loaded.warnings.iter().filter(about).map(say).collect(),
                )
            }
            Err(LoadErrors(errors)) => {
                (errors.iter().map(ToString::to_string).collect(), Vec::new())
            }
        },
    };
    let said = |flag: bool, texts: &[String]| match texts {
        [] => flag.to_string(),
        texts => format!("{flag}: {}", texts.join("; ")),
    };
    let mut differences = Vec::new();
    let mut check = |field: &str, expected: Option<bool>, observed: bool, texts: &[String]| {
        if expected.is_some_and(|expected| expected != observed) {
            differences.push(Difference {
                field: field.to_owned(),
                expected: (!observed).to_string(),
                observed: said(observed, texts),
            });
        }
    };
    check("accepted", expect.accepted, refusals.is_empty(), &refusals);
    check("warning", expect.warning, !warnings.is_empty(), &warnings);
    differences
}

/// Sends the case's flow and compares.
fn judge(
    loaded: Result<Loaded, LoadErrors>,
    setting: &Setting,
    network: &Network,
    flow: &Flow,
    expect: &Expect,
    profile: Enforcement,
) -> Result<Vec<Difference>, Fault> {
    let loaded = loaded.map_err(|errors| Fault::Broken(errors.to_string()))?;
    let snapshot = &loaded.snapshot;
    let habits = Habits {
        connect_timeout: snapshot.connect_timeout.max(Duration::from_millis(1)),
        dial_special: profile == Enforcement::Istio,
        heeds_dialled: profile == Enforcement::Strict,
        obeys_client_timeout: profile == Enforcement::Istio,
    };
    let site = Site::new(setting, snapshot, World::new(network, habits))
        .map_err(|bad| Fault::Broken(format!("the pod would not start: {bad}")))?;
    let shares = expect.distribution.is_some();
    let repeat = flow.repeat.unwrap_or(if shares { SHARED_REPEAT } else { 1 });
    Ok(expect.compare(&site.observe(flow, repeat)))
}
