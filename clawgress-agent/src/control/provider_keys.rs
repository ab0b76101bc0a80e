//! Keys of providers in the registry: names, versions and where they may go. Values are sealed before they come here, and what
//! is told of one never has them.

use clawgress_identity::{ProviderKeyId, ProviderKeyRecord};
use clawgress_policy::Host;

use super::model::{Draft, Model, Refusal};

/// Keys of them in the store.
pub(super) const PROVIDER_KEY: &str = "provider-key/";
/// Keys of one node, hosts of one key, and bytes of a host.
const KEYS_MAX: usize = 1024;
const HOSTS_MAX: usize = 16;

// === impl Model ===

impl Model {
    /// The key, or a refusal that says what to do.
    ///
    /// # Errors
    /// If there is none.
    pub fn provider_key(&self, id: &ProviderKeyId) -> Result<&ProviderKeyRecord, Refusal> {
        self.provider_keys.get(id).ok_or_else(|| {
            Refusal::Missing(format!("there is no provider key `{id}`; see `clawgressctl provider-key list`"))
        })
    }
}

/// Whether policy can name it, and its hosts are what they are compared with.
///
/// # Errors
/// What is wrong, and what to do.
pub(super) fn check(id: &ProviderKeyId, hosts: &[String]) -> Result<(), Refusal> {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let name = id.name();
    if name.len() > 63 || !name.bytes().all(is_letter) {
        return Err(Refusal::Invalid(format!(
            "`{name}` is no name that policy can have for a key: 1 to 63 of a-z, 0-9, `-` and `_`"
        )));
    }
    if hosts.is_empty() || hosts.len() > HOSTS_MAX {
        return Err(Refusal::Invalid(format!("a key may be sent to 1 to {HOSTS_MAX} hosts: give --host")));
    }
    for host in hosts {
        if Host::parse(host).map(|parsed| parsed.to_string()).ok().as_ref() != Some(host) {
            return Err(Refusal::Invalid(format!(
                "`{}` is no host in canonical form: lowercase, without a port or a dot at its end",
                host.escape_debug()
            )));
        }
    }
    Ok(())
}

/// A key in a sentence of the audit log: all of it but its value.
pub(super) fn described(key: &ProviderKeyRecord) -> String {
    let clear = if key.clear { ", also in clear" } else { "" };
    format!("`{}`, version {}, to {}{clear}", key.id, key.version, key.hosts.join(" "))
}

// === impl Draft ===

impl Draft {
    /// Adds a key, or puts its next version in the place of one. Returns that one.
    ///
    /// # Errors
    /// If another version came first, or a bound is reached.
    pub fn set_provider_key(&mut self, new: ProviderKeyRecord) -> Result<Option<ProviderKeyRecord>, Refusal> {
        let before = self.model.provider_keys.get(&new.id).cloned();
        if before.as_ref().map_or(0, |before| before.version) + 1 != new.version {
            return Err(Refusal::Invalid(format!("`{}` was changed meanwhile: try again", new.id)));
        }
        if before.is_none() && self.model.provider_keys.len() >= KEYS_MAX {
            return Err(Refusal::Full(format!("a node has at most {KEYS_MAX} provider keys")));
        }
        self.put(&format!("{PROVIDER_KEY}{}", new.id), &new)?;
        self.model.provider_keys.insert(new.id.clone(), new);
        self.governs = true;
        Ok(before)
    }

    /// Deletes a key: what would be sent with it, is denied. Returns it as it was.
    ///
    /// # Errors
    /// If there is none.
    pub fn delete_provider_key(&mut self, id: &ProviderKeyId) -> Result<ProviderKeyRecord, Refusal> {
        let before = self.model.provider_key(id)?.clone();
        self.model.provider_keys.remove(id);
        self.delete(format!("{PROVIDER_KEY}{id}"));
        self.governs = true;
        Ok(before)
    }
}
