//! `interceptor agent --check`.

use super::AppError;
use super::agent::client;
use crate::agent::check::{Finding, Findings, Place, Wanted, look_at_cluster, look_at_machine};
use crate::cli::{self, Exit};

/// Looks at machine and cluster, and says what is there.
pub(super) async fn run(args: &cli::Agent) -> Result<Exit, AppError> {
    let place =
        Place { cgroup_root: &args.cgroup_root, directories: [&args.state_dir, &args.secrets_dir] };
    let mut findings = Findings(look_at_machine(&place));
    match client().await {
        Ok(client) => {
            let wanted = Wanted { node: &args.node, mesh: &args.mesh_config_map };
            findings.0.extend(look_at_cluster(&client, &wanted).await);
        }
        Err(error) => findings.0.push(Finding::no_cluster(error)),
    }
    print!("{findings}");
    Ok(if findings.suffice() { Exit::Success } else { Exit::Failure })
}
