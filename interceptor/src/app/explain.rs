//! `interceptor explain`: its arguments to a question, and the answer to standard output.

use std::path::Path;

use super::{AppError, resolv_conf, system};
use crate::cli::{self, Exit, Output};
use crate::explain::{Question, Setting, explain};
use crate::policy::{Caller, Sources};

pub(super) async fn run(args: cli::Explain) -> Result<Exit, AppError> {
    let question = Question::parse(&args.target, args.dst.as_deref())
        .map_err(|error| AppError::Usage(error.to_string()))?;
    let resolvers = if args.resolve {
        let servers = resolv_conf::read(Path::new("/etc/resolv.conf"));
        Some(servers.map_err(system("cannot read /etc/resolv.conf"))?)
    } else {
        None
    };
    let setting = Setting {
        sources: Sources {
            files: args.files,
            mesh_config: args.mesh.mesh_config,
            outbound: args.mesh.outbound,
            enforcement: args.mesh.enforcement,
            fast_path: args.fast_path,
            ..Sources::default()
        },
        caller: Caller { namespace: args.workload.namespace, labels: args.workload.labels },
        bypass: args.bypass,
        resolvers,
    };
    let explained = explain(&setting, &question).await.map_err(|errors| {
        AppError::Resources(format!("these resources cannot be used\n{errors}"))
    })?;
    match args.output {
        Output::Json => {
            println!("{}", explained.to_json().map_err(|error| system("explain")(error.into()))?);
        }
        Output::Text => {
            for notice in &explained.notices {
                eprintln!("interceptor: {notice}");
            }
            println!("{}", explained.to_string().trim_end());
        }
    }
    Ok(Exit::Success)
}
