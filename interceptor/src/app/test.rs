//! `interceptor test`: policy tests on the command line.

use std::io::Write as _;
use std::time::Instant;

use super::AppError;
use crate::cli::{Exit, Test};
use crate::scenario;

/// Runs every case and says how each went.
pub(super) fn run(test: &Test) -> Result<Exit, AppError> {
    let cases = scenario::read(&test.paths, test.enforcement)
        .map_err(|error| AppError::Resources(error.to_string()))?;
    let mut results = Vec::with_capacity(cases.len());
    let mut out = std::io::stdout().lock();
    let mut say = |text: &str| match out.write_all(text.as_bytes()) {
        // Whoever reads may have seen enough; the exit status still counts.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(super::system("standard output")),
    };
    for case in &cases {
        let start = Instant::now();
        let result = scenario::run(case, test.enforcement);
        say(&scenario::text(case, &result))?;
        results.push((case, result, start.elapsed()));
    }
    let failed = results.iter().filter(|(_, result, _)| result.is_err()).count();
    say(&format!("{} passed, {failed} failed\n", results.len() - failed))?;
    if let Some(path) = &test.junit {
        std::fs::write(path, scenario::junit(&results))
            .map_err(|source| AppError::Busy { what: path.display().to_string(), source })?;
    }
    Ok(if failed == 0 { Exit::Success } else { Exit::Failure })
}
