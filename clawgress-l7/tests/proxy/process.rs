//! The program as a process: its privileges, its end, and what it says to a bad configuration.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for the process.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ends the process, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(directory: &Path, text: &str) -> Running {
    let file = directory.join("clawgress.toml");
    std::fs::write(&file, text).expect("write");
    let program = env!("CARGO_BIN_EXE_clawgress-l7");
    let mut command = Command::new(program);
    command.arg("--config").arg(file).stderr(Stdio::piped());
    Running(command.spawn().expect("start"))
}

fn config(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "[node]\nname = \"gw\"\nrun_dir = \"{directory}\"\n[datapath]\nmode = \"none\"\n[proxy]\nlisten = [\"127.0.0.1:3128\"]\n[l7]\nresolvers = [\"127.0.0.1:53\"]\n"
    )
}

fn wait(running: &mut Running) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = running.0.try_wait().expect("wait") {
            return status.code();
        }
        assert!(begun.elapsed() < PATIENCE, "it must end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn it_runs_without_privileges_and_ends_at_sigterm() {
    let directory = tempfile::tempdir().expect("directory");
    let mut running = start(directory.path(), &config(directory.path()));
    let pid = running.0.id();
    let begun = Instant::now();
    // Every thread, and there are several once the runtime is up.
    let threads = loop {
        let threads: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/task"))
            .expect("threads")
            .filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("status")).ok())
            .collect();
        if threads.len() > 1 {
            break threads;
        }
        assert!(begun.elapsed() < PATIENCE, "it starts its runtime");
        std::thread::sleep(Duration::from_millis(20));
    };
    for status in threads {
        for line in [
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapInh:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(status.contains(line), "`{line}` in {status}");
        }
    }
    // Its peers are away: it waits for them, and still ends when it is told to.
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    assert_eq!(wait(&mut running), Some(0));
}

#[test]
fn a_bad_configuration_is_named_with_file_and_line() {
    let directory = tempfile::tempdir().expect("directory");
    let text = config(directory.path()).replace("[l7]", "[l7]\nthreds = 2");
    let mut running = start(directory.path(), &text);
    assert_eq!(wait(&mut running), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(running.0.stderr.as_mut().expect("stderr"), &mut said).expect("read");
    assert!(said.contains("clawgress.toml:9:1: unknown field `threds`"), "{said}");
}
