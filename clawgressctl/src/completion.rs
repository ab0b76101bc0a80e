//! `completion`: scripts for shells.

use std::io;

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use crate::Cli;
use crate::failure::Failure;

#[derive(Args)]
pub struct Arguments {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
#[expect(clippy::unnecessary_wraps, reason = "the signature of its kind")]
pub fn print(arguments: &Arguments) -> Result<(), Failure> {
    generate(arguments.shell, &mut Cli::command(), "clawgressctl", &mut io::stdout().lock());
    Ok(())
}
