//! `geo`: the geo data in force, and their files.

use clap::Subcommand;
use clawgress_api::proto::Empty;
use clawgress_api::{GeoPart, GeoStatus};

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

#[derive(Subcommand)]
pub enum Verb {
    /// Shows which geo data are in force, and why newer files aren't.
    Status,
    /// Reads the files again now, rather than when the agent notices that they changed.
    Reload,
}

/// Does what was asked.
pub async fn run(client: &Client, output: Output, verb: Verb) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let answer = match verb {
        Verb::Status => admin.geo_status(Empty {}).await,
        Verb::Reload => admin.reload_geo(Empty {}).await,
    };
    let status: GeoStatus = client.document(answer)?;
    if output == Output::Json {
        return output::json(&status);
    }
    output::table(
        &["DATA", "FILE", "IN FORCE", "BUILT", "NAMED BY POLICY", "PREFIXES"],
        &status.parts.iter().map(row).collect::<Vec<_>>(),
    )?;
    if let Some(trouble) = &status.trouble {
        output::note(&format!("warning: {}", output::clean(trouble)));
    }
    Ok(())
}

fn row(part: &GeoPart) -> Vec<String> {
    let path = part.path.as_ref().map(|path| path.display().to_string());
    let source = part.in_force.as_ref();
    let in_force = source.map(|s| format!("{} {}", s.database, s.sha256.get(..12).unwrap_or_default()));
    vec![
        part.kind.clone(),
        path.unwrap_or_else(|| "not configured".to_owned()),
        in_force.unwrap_or_else(|| "nothing is named".to_owned()),
        output::or_dash(source.map(|s| s.built.strftime("%F").to_string())),
        part.names.to_string(),
        part.prefixes.to_string(),
    ]
}
