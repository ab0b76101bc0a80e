//! `policy show`, `policy history` and `policy signer`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clawgress_api::identity::PolicyOwner;
use clawgress_api::proto::{Empty, PolicyOwner as OwnerMessage};
use clawgress_api::{PolicyRevision, PolicySigner, Standing, from_hex};
use clawgress_policy::{NamedSets, PolicyBundle};

use super::{of, revision};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Output};

/// Prints a revision's text.
pub async fn show(client: &Client, output: Output, owner: &PolicyOwner, number: u64) -> Result<(), Failure> {
    let revision = revision(client, owner, number).await?;
    if output == Output::Json {
        return output::json(&revision);
    }
    let bundle = revision.bundle.unwrap_or_default();
    // The text alone goes to standard output, so that it can be applied again.
    let live = revision.generation.map(|g| format!(", live in generation {g}")).unwrap_or_default();
    output::note(&output::clean(&format!(
        "revision {}{}{live}, by {} at {}: {}",
        revision.number,
        of(owner),
        revision.author,
        revision.time,
        revision.message
    )));
    let after =
        if revision.parent == 0 { "the first".to_owned() } else { format!("after {}", revision.parent) };
    let standing = revision.standing.map_or("-", Standing::name);
    output::note(&output::clean(&format!("{after}, SHA-256 {}, signature: {standing}", revision.hash)));
    if !revision.accepted.is_empty() {
        output::note(&format!(
            "accepted that it does nothing: {}",
            output::clean(&revision.accepted.join(", "))
        ));
    }
    match revision.standing {
        None | Some(Standing::Signed) => {}
        Some(Standing::Unknown) => {
            output::note("whether its signature holds is unknown: the keys role is away")
        }
        Some(Standing::Unsigned) => output::note("warning: nobody signed it"),
        Some(Standing::OtherKey) => {
            output::note("warning: it was signed by another key than the keys role's")
        }
        Some(Standing::Altered) => {
            output::note("warning: its signature does not hold: somebody changed it in the state store");
        }
    }
    if bundle.sets != NamedSets::default() {
        output::note("it has named sets; see them with --output json");
    }
    output::line(bundle.text.trim_end())
}

/// Lists the revisions.
pub async fn list(client: &Client, output: Output, owner: &PolicyOwner) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let answer = admin.policy_history(OwnerMessage { owner: owner.to_string() }).await;
    let revisions: Vec<PolicyRevision<PolicyBundle>> = client.documents(answer)?;
    if output == Output::Json {
        return output::json(&revisions);
    }
    if revisions.is_empty() {
        let told = match owner {
            PolicyOwner::Platform => {
                "no policy of the platform has been applied: it restricts nothing".to_owned()
            }
            owner => format!("no policy{} has been applied yet: everything is denied", of(owner)),
        };
        return output::line(&told);
    }
    let rows: Vec<Vec<String>> = revisions
        .iter()
        .map(|r| {
            vec![
                r.number.to_string(),
                r.generation.map(|g| format!("generation {g}")).unwrap_or_default(),
                if r.parent == 0 { "-".to_owned() } else { r.parent.to_string() },
                r.time.strftime("%F %T").to_string(),
                r.author.clone(),
                r.hash.chars().take(12).collect(),
                r.standing.map_or("-", Standing::name).to_owned(),
                if r.accepted.is_empty() { "-".to_owned() } else { r.accepted.join(" ") },
                r.message.clone(),
            ]
        })
        .collect();
    output::table(
        &["REVISION", "LIVE", "PARENT", "TIME (UTC)", "AUTHOR", "HASH", "SIGNATURE", "ACCEPTED", "MESSAGE"],
        &rows,
    )
}

/// What comes before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410 section 4).
const ED25519_INFO: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Prints the key that revisions are signed with.
pub async fn signer(client: &Client, output: Output) -> Result<(), Failure> {
    let mut admin = client.connect().await?;
    let signer: PolicySigner = client.document(admin.policy_signer(Empty {}).await)?;
    if output == Output::Json {
        return output::json(&signer);
    }
    let key = from_hex(&signer.public_key).unwrap_or_default();
    let info = STANDARD.encode([&ED25519_INFO[..], &key].concat());
    output::line(&format!("-----BEGIN PUBLIC KEY-----\n{info}\n-----END PUBLIC KEY-----"))
}
