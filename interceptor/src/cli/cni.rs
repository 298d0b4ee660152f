//! `interceptor cni`.

use clap::Args;

/// `interceptor cni`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(
    after_help = "It reads CNI_COMMAND and its companions from the environment, a network's \
configuration from standard input, and answers in JSON on standard output, as version 1.1 of the CNI \
specification has it. Called by the name interceptor-cni, the binary does the same without a verb; \
`interceptor agent` puts it there. See docs/cni.md.
Exit status: 0 done; 1 not done, and why on standard output."
)]
pub struct Cni {}
