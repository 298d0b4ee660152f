//! Interceptor's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    interceptor::app::main()
}
