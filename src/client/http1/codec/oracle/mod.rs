//! Compares the codec with hyper's HTTP/1 client: both read the same responses in the same pieces, and write the same
//! requests.
//!
//! The codec may be stricter than hyper in the classes of `Strictness`, each of which has an example. It's laxer in
//! none. The module is compiled for tests and for the fuzz targets.

mod message;
mod reference;
pub(crate) mod request;
pub(crate) mod response;
mod strictness;
mod subject;

#[cfg(test)]
pub(crate) mod grammar;

/// Escapes octets for a message of a failure, and leaves out the middle of long ones.
fn shown(octets: &[u8]) -> String {
    match octets.len() {
        ..200 => format!("\"{}\"", octets.escape_ascii()),
        length => {
            let (start, end) = (&octets[..50], &octets[length - 20..]);
            format!("\"{}\" … \"{}\" ({length} bytes)", start.escape_ascii(), end.escape_ascii())
        }
    }
}

/// Runs this number of cases, or that of `PROPTEST_CASES`. No file of failures is kept, because a failure becomes a
/// seed of a fuzz target.
#[cfg(test)]
pub(crate) fn config(cases: u32) -> proptest::test_runner::Config {
    use proptest::test_runner::Config;

    let config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { Config { cases, ..config } }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{config, grammar};

    proptest! {
        #![proptest_config(config(3000))]

        #[test]
        fn responses_are_read_as_hyper_reads_them(case in grammar::response::case()) {
            case.check().map_err(TestCaseError::fail)?;
        }

        #[test]
        fn requests_are_written_as_hyper_writes_them(case in grammar::request::case()) {
            case.check().map_err(TestCaseError::fail)?;
        }
    }
}
