//! Verdicts against a slow second reading of the rules (egress-semantics, profiles).
//!
//! The reference shares nothing with `decide` but the resources: it reads those as generated, by
//! linear scans, and says what can be seen of each verdict; the product gets the same resources as
//! a file. `cargo xtask mutants` shows that faults in `decide` do not pass here.

mod generate;
mod istio;
mod observe;
mod registry;
mod request;
mod strict;
mod routing;
mod sidecar;
mod generate_routes;
mod world;

use std::fs;
use std::path::Path;

use interceptor::decide::Policy;
use interceptor::policy::{Caller, Enforcement, Sources, load};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use world::{Flow, World};

/// Policies per profile, each with [`FLOWS`] flows, unless PROPTEST_CASES says otherwise.
const CASES: u32 = 2_000;
const FLOWS: usize = 16;

#[test]
fn istio_decides_as_the_reference() {
    compare(Enforcement::Istio);
}

#[test]
fn strict_decides_as_the_reference() {
    compare(Enforcement::Strict);
}

fn compare(profile: Enforcement) {
    let cases = match std::env::var("PROPTEST_CASES") {
        Ok(cases) => cases.parse().expect("a number of cases"),
        Err(_) => CASES,
    };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.yaml");
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let worlds = (generate::world(profile), vec(generate::flow(), FLOWS));
    let outcome = runner.run(&worlds, |(world, flows)| {
        let policy = compile(&world, &file)?;
        flows.iter().try_for_each(|flow| agree(&world, &policy, flow))
    });
    if let Err(proptest::test_runner::TestError::Fail(reason, _)) = &outcome {
        panic!("{reason}");
    }
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// Through the loader, which must accept what the generator made valid.
fn compile(world: &World, file: &Path) -> Result<Policy, TestCaseError> {
    let yaml = world.yaml();
    fs::write(file, &yaml).expect("written");
    let sources = Sources {
        files: vec![file.to_owned()],
        outbound: Some(world.mesh_mode),
        enforcement: Some(world.profile),
        ..Sources::default()
    };
    let caller = Caller {
        namespace: registry::WORKLOAD_NAMESPACE.to_owned(),
        labels: vec![("team".to_owned(), sidecar::WORKLOAD_TEAM.to_owned())],
    };
    let loaded = load(&sources, &caller)
        .map_err(|errors| TestCaseError::fail(format!("{errors}\n{yaml}")))?;
    prop_assert!(loaded.rejected.is_empty(), "{:?}\n{yaml}", loaded.rejected);
    Ok(loaded.snapshot.policy)
}

fn agree(world: &World, policy: &Policy, flow: &Flow) -> Result<(), TestCaseError> {
    let expected = match world.profile {
        Enforcement::Istio => istio::verdicts(world, flow),
        Enforcement::Strict => strict::verdicts(world, flow),
    };
    let found = observe::decide(policy, flow);
    prop_assert!(
        found == expected,
        "{flow:?}\n{:?}\nin\n{}decide:    {found:?}\nreference: {expected:?}",
        world.mesh_mode,
        world.yaml()
    );
    Ok(())
}
