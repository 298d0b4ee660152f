//! What the command line and the files that it names ask for, in the words of the parts that do it.

use std::sync::Arc;
use std::time::Duration;

use interceptor_common::Settings;

use super::AppError;
use super::begin::Others;
use super::reload::said;
use super::watchdog::LOSS_LIMIT;
use crate::account::{LogSettings, LogTarget};
use crate::cli;
use crate::policy::{self, Caller, Enforcement, Loaded, OnLoss, Snapshot, Sources};
use crate::workloads::capture::PROXY_UID;

/// How long the daemon may lean on an old answer while its resolver fails (T-42).
const STALE_FOR: Duration = Duration::from_secs(300);

/// Where policy comes from.
pub(super) fn sources(args: &cli::Run) -> Sources {
    Sources {
        files: args.files.clone(),
        mesh_config: args.mesh.mesh_config.clone(),
        outbound: args.mesh.outbound,
        enforcement: args.mesh.enforcement,
        on_removal: args.on_policy_removal,
        on_loss: args.on_daemon_loss,
        on_log_loss: args.on_log_loss,
        fast_path: args.fast_path,
        ..Sources::default()
    }
}

/// For whom policy is read.
pub(super) fn caller(args: &cli::Run) -> Caller {
    Caller { namespace: args.workload.namespace.clone(), labels: args.workload.labels.clone() }
}

/// Policy as it is at the start.
pub(super) fn load_policy(args: &cli::Run, sources: &Sources) -> Result<Loaded, AppError> {
    let loaded = policy::load(sources, &caller(args)).map_err(|errors| {
        AppError::Resources(format!(
            "these resources cannot be used; nothing was started\n{errors}"
        ))
    })?;
    for text in said(&loaded.warnings, &loaded.rejected) {
        eprintln!("interceptor: {text}");
    }
    // One bad resource leaves the others in force; but nothing in force is no policy (T-61).
    if !loaded.rejected.is_empty() && loaded.summary.service_entries == 0 {
        return Err(AppError::Resources("no valid resource is left; nothing was started".into()));
    }
    if args.mesh.outbound.is_none()
        && args.mesh.mesh_config.is_none()
        && loaded.snapshot.outbound == policy::Outbound::AllowAny
    {
        eprintln!(
            "interceptor: outbound policy ALLOW_ANY (the default): destinations that no resource names \
             pass and are logged; --outbound registry-only refuses them"
        );
    }
    Ok(loaded)
}

/// What of the kernel's settings policy governs.
pub(super) fn governed(settings: Settings, snapshot: &Snapshot, others: &Others) -> Settings {
    let exempt_id = match snapshot.enforcement {
        Enforcement::Istio => PROXY_UID,
        // T-8: whoever can become that user would be past us.
        Enforcement::Strict => 0,
    };
    let loss_limit = match snapshot.on_loss {
        OnLoss::DirectTier => Duration::ZERO,
        OnLoss::Closed => LOSS_LIMIT,
    };
    Settings {
        refuse_datagrams: u32::from(others.refuse_unknown(snapshot.refuse_datagrams)),
        exempt_id,
        loss_limit_ns: loss_limit.as_nanos() as u64,
        ..settings
    }
}

/// T-42: strict leans on old answers for a while only.
pub(super) fn stale_for(snapshot: &Snapshot) -> Option<Duration> {
    (snapshot.enforcement == Enforcement::Strict).then_some(STALE_FOR)
}

/// Where lines go that nobody says a place for: standard error beside COMMAND's own output, else
/// standard output.
pub(super) fn default_log(args: &cli::Run) -> LogTarget {
    if args.command.is_empty() { LogTarget::Stdout } else { LogTarget::Stderr }
}

/// The flag, else what mesh config and Telemetry say, else the default. The flag moves every output to its place; formats and filters stay.
pub(super) fn log_settings(
    flag: Option<&cli::LogTarget>,
    default: LogTarget,
    snapshot: &Snapshot,
) -> Vec<LogSettings> {
    let forced = flag.map(|flag| match flag {
        cli::LogTarget::Stdout => LogTarget::Stdout,
        cli::LogTarget::File(path) => LogTarget::File(path.clone()),
    });
    let everything = |target| {
        vec![LogSettings { target, format: Arc::clone(&snapshot.log_format), filter: None }]
    };
    match (forced, snapshot.access_log.clone()) {
        (None, None) => everything(default),
        (None, Some(governed)) => governed,
        (Some(target), None) => everything(target),
        (Some(target), Some(governed)) if governed.is_empty() => everything(target),
        (Some(target), Some(governed)) => {
            let mut moved: Vec<LogSettings> = Vec::new();
            for one in governed {
                let one = LogSettings { target: target.clone(), ..one };
                // Two places that became one need no line twice.
                if !moved.contains(&one) {
                    moved.push(one);
                }
            }
            moved
        }
    }
}
