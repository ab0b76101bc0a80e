//! What the process logs. Must never tell what Pingora says of requests, whatever is asked for: its words hold their heads, and keys
//! in those.

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, registry};

/// Variable that says what is logged.
const VARIABLE: &str = "CLAWGRESS_LOG";

/// What writes the log as [`VARIABLE`] has it, and what it may have at most.
#[must_use]
pub fn of_environment<W>(is_coloured: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let asked = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    log(asked, is_coloured, writer)
}

fn log<W>(asked: EnvFilter, is_coloured: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // One that tells no level of its own, so that what nobody asks for costs Pingora no more than it did.
    let told = filter_fn(may_be_told);
    registry().with(asked).with(told).with(fmt::layer().with_ansi(is_coloured).with_writer(writer))
}

/// Whether something may be logged at all. Of Pingora it is what fails, and nothing of what passes.
fn may_be_told(what: &Metadata<'_>) -> bool {
    match what.target() {
        target if target.starts_with("pingora_proxy") => false,
        target if target.starts_with("pingora") => *what.level() <= Level::WARN,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn heads_of_requests_are_never_told_whatever_is_asked_for() {
        for asked in
            ["info", "debug", "trace", "pingora_proxy=trace", "pingora_core::protocols=debug,pingora=trace"]
        {
            let page = Page::default();
            let writer = page.clone();
            let log = log(EnvFilter::new(asked), false, move || writer.clone());
            tracing::subscriber::with_default(log, || {
                tracing::error!(target: "pingora_proxy", "claw_proxy");
                tracing::debug!(target: "pingora_proxy::proxy_h1", "claw_h1");
                tracing::debug!(target: "pingora_core::protocols::http::v1", "claw_core");
                tracing::warn!(target: "pingora_core::server", "a warning");
                tracing::debug!(target: "clawgress_l7::gate", "of our own");
            });
            let told = String::from_utf8(page.0.lock().clone()).expect("text");
            assert!(!told.contains("claw_"), "{asked}: {told}");
            let is_wide = !asked.contains('=');
            assert!(!is_wide || told.contains("a warning"), "{asked}: {told}");
            assert_eq!(told.contains("of our own"), matches!(asked, "debug" | "trace"), "{asked}: {told}");
        }
    }
}
