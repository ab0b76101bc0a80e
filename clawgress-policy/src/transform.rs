//! What `@effect("transform")` changes of a request: header fields that are taken away or set, also to keys that no agent holds;
//! and of the call of a model its parameters, its tools and its prompt ([`body`]).
//!
//! Of all that match one request, what is taken away goes first, then what is set, in the order of the policies' ids: of
//! two that set the same field, the one whose id comes last counts. Those of the platform's policy come after all others:
//! what it sets or takes away, no tenant's sets otherwise. Must never touch a field that judgement rests on.

use std::collections::BTreeMap;

pub mod body;

use self::body::{BodyChange, BodyChanges};
use crate::PLATFORM_PREFIX;
use crate::effect::{Effect, Obligation};
use crate::host::quote;
use crate::{fields, head};

/// Longest name and value, bytes: a head of 64 KiB holds what sixteen policies set.
const NAME_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 2048;
/// Where servers look for keys: a policy's text is no place for one.
const SECRETS: [&str; 17] = [
    "apikey",
    "api-key",
    "authorization",
    "cookie",
    "dd-api-key",
    "ocp-apim-subscription-key",
    "private-token",
    "subscription-key",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-api-token",
    "x-apikey",
    "x-auth-key",
    "x-auth-token",
    "x-functions-key",
    "x-goog-api-key",
];
/// On whose account a key is used, where it may be on several: of OpenAI and Google.
const ACCOUNTS: [&str; 3] = ["openai-organization", "openai-project", "x-goog-user-project"];
/// Parameters of a query that they look for keys in, besides those of these names: Google's, OAuth's (RFC 6750 section 2.3), Azure's
/// (`code` of Functions, `sig` of shared access signatures) and AWS's.
const SECRET_PARAMETERS: [&str; 12] = [
    "access-token",
    "auth-token",
    "bearer-token",
    "code",
    "key",
    "oauth-token",
    "sig",
    "token",
    "x-amz-credential",
    "x-amz-signature",
    "x-goog-credential",
    "x-goog-signature",
];
/// Protocols that browsers offer for want of fields they could set, which are keys: OpenAI's, and those of Kubernetes.
const SECRET_PROTOCOLS: [&str; 5] = [
    "base64url.bearer.",
    "openai-ephemeral-",
    "openai-insecure-api-key.",
    "openai-organization.",
    "openai-project.",
];

/// Longest name of a key.
const KEY_NAME_BYTES_MAX: usize = 63;

/// A field that is set to a key which no agent holds, and no policy's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// What comes before the key: `Bearer `.
    pub before: Box<str>,
    /// The key's name, of the agent's tenant.
    pub key: Box<str>,
    /// What comes after it.
    pub behind: Box<str>,
}

/// A change: at least one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transform {
    /// Name of the field that is taken away, in lowercase.
    pub remove: Option<Box<str>>,
    /// Name, in lowercase, and value of the field that is set, instead of all there are of that name.
    pub set: Option<(Box<str>, Box<str>)>,
    /// The same, of a field that is set to a key.
    pub inject: Option<(Box<str>, Injected)>,
    /// What is changed of a call of a model.
    pub body: BodyChange,
}

/// All that is changed of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names of fields that are taken away.
    pub remove: Vec<Box<str>>,
    /// Fields that are set, each once.
    pub set: BTreeMap<Box<str>, Box<str>>,
    /// Fields that are set to keys, each once.
    pub inject: BTreeMap<Box<str>, Injected>,
    /// What is changed of a call of a model.
    pub body: BodyChanges,
}

// === impl Changes ===

impl Changes {
    /// What `obligations`, ascending by their policies' ids, come to.
    pub fn of<'a>(obligations: impl IntoIterator<Item = &'a Obligation>) -> Changes {
        let mut changes = Changes::default();
        let is_platforms = |obligation: &&Obligation| obligation.policy.starts_with(PLATFORM_PREFIX);
        let (platforms, own): (Vec<_>, Vec<_>) = obligations.into_iter().partition(is_platforms);
        for obligations in [own, platforms] {
            let transforms = || {
                obligations.iter().filter_map(|obligation| match &obligation.effect {
                    Effect::Transform(transform) => Some(transform),
                    _ => None,
                })
            };
            for name in transforms().filter_map(|transform| transform.remove.as_ref()) {
                changes.unset(name);
                changes.remove.push(name.clone());
            }
            for (name, value) in transforms().filter_map(|transform| transform.set.as_ref()) {
                changes.unset(name);
                changes.set.insert(name.clone(), value.clone());
            }
            for (name, key) in transforms().filter_map(|transform| transform.inject.as_ref()) {
                changes.unset(name);
                changes.inject.insert(name.clone(), key.clone());
            }
            transforms().for_each(|transform| changes.body.add(&transform.body));
        }
        changes
    }

    /// Sets a field no longer, nor one that servers may take for it.
    fn unset(&mut self, name: &str) {
        self.set.retain(|former, _| !fields::is_same(former, name));
        self.inject.retain(|former, _| !fields::is_same(former, name));
    }

    /// Whether a client's field, by its name in lowercase, stays behind: it is taken away, or another is set in its place.
    /// Servers that take `_` for `-` would see two of what was set.
    #[must_use]
    pub fn takes(&self, name: &str) -> bool {
        let changed = self.remove.iter().chain(self.set.keys()).chain(self.inject.keys());
        // Whoever is sent with a key of the gateway's, is sent with none of its client's, and on no account that its client chose.
        let mut theirs = SECRETS.iter().chain(&ACCOUNTS);
        let is_key = !self.inject.is_empty() && theirs.any(|secret| fields::is_same(secret, name));
        is_key || { changed }.any(|changed| fields::is_same(changed, name))
    }

    /// `query` without what a client would prove in it who asks, where a key is injected; `None` if there is nothing of that. What can
    /// be read in more than one way is looked at in each: some servers take `;` for `&`.
    #[must_use]
    pub fn without_keys(&self, query: &str) -> Option<String> {
        if self.inject.is_empty() {
            return None;
        }
        let is_key = |parameter: &str| {
            // What is no text is read by some servers up to where it is none, and by some without that.
            let Some(name) = head::text(parameter.split('=').next().unwrap_or_default()) else { return true };
            // `key[]` and `key[0]` are `key` to some, and what is no name of theirs is `_`.
            let name = name.trim().split('[').next().unwrap_or_default().to_ascii_lowercase();
            let name = name.replace(['.', ' '], "-");
            let known = SECRETS.iter().chain(&SECRET_PARAMETERS);
            { known }.any(|secret| fields::is_same(secret, &name))
        };
        let has_key = |pair: &&str| pair.split(';').any(is_key);
        if !query.split('&').any(|pair| has_key(&pair)) {
            return None;
        }
        Some(query.split('&').filter(|pair| !has_key(pair)).collect::<Vec<_>>().join("&"))
    }

    /// The protocols that a client offers for a WebSocket (RFC 6455 section 11.3.4) without those that are keys of its own, where a key
    /// is injected; `None` if there are none.
    #[must_use]
    pub fn without_key_protocols(&self, offered: &str) -> Option<String> {
        let is_key = |protocol: &&str| {
            let protocol = protocol.trim().to_ascii_lowercase();
            SECRET_PROTOCOLS.iter().any(|secret| protocol.starts_with(secret))
        };
        if self.inject.is_empty() || !offered.split(',').any(|protocol| is_key(&protocol)) {
            return None;
        }
        Some(
            offered
                .split(',')
                .map(str::trim)
                .filter(|protocol| !is_key(protocol))
                .collect::<Vec<_>>()
                .join(", "),
        )
    }

    /// Whether what `later` changes is changed by this: what was sent already can't be changed any more.
    #[must_use]
    pub fn covers(&self, later: &Changes) -> bool {
        let mut names = later.remove.iter().chain(later.set.keys()).chain(later.inject.keys());
        let fields = names.all(|name| {
            self.remove.contains(name) || self.set.contains_key(name) || self.inject.contains_key(name)
        });
        fields && (later.body.is_empty() || later.body == self.body)
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.inject.is_empty() && self.body.is_empty()
    }
}

/// Two policies that give two tools one name, and that name: to whom the model answers, nobody would know.
pub(crate) fn renamed_to_one<'a>(
    obligations: impl Iterator<Item = &'a Obligation>,
) -> Option<([&'a str; 2], &'a str)> {
    let mut known = BTreeMap::new();
    for obligation in obligations {
        let Effect::Transform(Transform { body: BodyChange { rename: Some((own, to)), .. }, .. }) =
            &obligation.effect
        else {
            continue;
        };
        let (first, policy) = known.entry(&**to).or_insert((own, &*obligation.policy));
        if *first != own {
            return Some(([policy, &obligation.policy], to));
        }
    }
    None
}

/// Reads `Name`.
///
/// # Errors
/// Why not, and what to write.
pub(crate) fn removed(text: &str) -> Result<Box<str>, String> {
    name(text, "@remove_header(\"X-Debug\")")
}

/// Reads `Name: value`.
///
/// # Errors
/// Why not, and what to write.
pub(crate) fn assigned(text: &str) -> Result<(Box<str>, Box<str>), String> {
    let example = "@set_header(\"X-Team: payments\")";
    let (before, value) = text.split_once(':').ok_or_else(|| {
        format!("`{}` is no header field: write a name, a colon and a value, as in `{example}`", quote(text))
    })?;
    let name = name(before, example)?;
    if SECRETS.contains(&&*name) {
        return Err(format!(
            "`{name}` holds a secret, and whoever reads the policy would read it too: keep the key with `clawgressctl provider-key`, and name it in `@inject`"
        ));
    }
    let value = value.trim_matches([' ', '\t']);
    // RFC 9110 section 5.5, without obs-text, of which every reader makes something else.
    let is_plain = value.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t'));
    if value.is_empty() || value.len() > VALUE_BYTES_MAX || !is_plain {
        return Err(format!(
            "the value of `{name}` is 1 to {VALUE_BYTES_MAX} printable ASCII characters; to take the field away, write `@remove_header`"
        ));
    }
    Ok((name, value.into()))
}

/// Reads `Name: text {key} text`.
///
/// # Errors
/// Why not, and what to write.
pub(crate) fn injected(text: &str) -> Result<(Box<str>, Injected), String> {
    let example = "@inject(\"Authorization: Bearer {openai}\")";
    let malformed = || {
        format!(
            "`{}` sets no field to a key: write a name, a colon and a value with the name of one key in braces, as in `{example}`",
            quote(text)
        )
    };
    let (before, value) = text.split_once(':').ok_or_else(malformed)?;
    let name = name(before, example)?;
    let value = value.trim_matches([' ', '\t']);
    let (before, rest) = value.split_once('{').ok_or_else(malformed)?;
    let (key, behind) = rest.split_once('}').ok_or_else(malformed)?;
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    if !(1..=KEY_NAME_BYTES_MAX).contains(&key.len()) || !key.bytes().all(is_name) {
        return Err(format!("`{}` is no name of a key: 1 to 63 of a-z, 0-9, `-` and `_`", quote(key)));
    }
    let is_plain = |text: &str| text.bytes().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'{' | b'}'));
    if value.len() > VALUE_BYTES_MAX || !is_plain(before) || !is_plain(behind) {
        return Err(malformed());
    }
    Ok((name, Injected { before: before.into(), key: key.into(), behind: behind.into() }))
}

fn name(text: &str, example: &str) -> Result<Box<str>, String> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(is_token) {
        return Err(format!("`{}` is no name of a header field: write it as in `{example}`", quote(text)));
    }
    let name = text.to_ascii_lowercase();
    match fields::refusal(&name) {
        Some(why) => Err(format!("policy can't change `{name}`: {why}")),
        None => Ok(name.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Severity;

    #[test]
    fn fields_are_read_as_written_or_refused() {
        assert_eq!(assigned("X-Team:  a: b\t"), Ok(("x-team".into(), "a: b".into())));
        assert_eq!(removed("Authorization"), Ok("authorization".into()));
        for bad in [
            "",
            "X-Team",
            "X-Team:",
            "X Team: a",
            ": a",
            "X-Team : a",
            "X-Team: a\nHost: b",
            "X-Team: ä",
            "Host: a",
            "Connection: a",
            "Content-Length: 1",
            "Content_Length: 1",
            "Content-Encoding: gzip",
            "Content_Type: text/plain",
            "Transfer-Encoding: chunked",
            "Proxy-Authorization: a",
            "X-Clawgress-Key: a",
            "X_Forwarded_For: a",
            "Forwarded: a",
            "TE: a",
            "Authorization: a",
            "X-Api-Key: a",
        ] {
            assigned(bad).expect_err(bad);
        }
        for bad in ["", "Host", "upgrade", "x-forwarded-for", "X-Team: a", "content-length"] {
            removed(bad).expect_err(bad);
        }
    }

    #[test]
    fn who_gets_a_key_has_no_other() {
        let key = Injected { before: "".into(), key: "gemini".into(), behind: "".into() };
        let changes = Changes { inject: [("x-goog-api-key".into(), key)].into(), ..Changes::default() };
        for (query, left) in [
            ("key=theirs", Some("")),
            ("alt=sse&key=theirs", Some("alt=sse")),
            ("KEY=a&alt=sse&Access_Token=b&k%65y=c&api%5fkey=d", Some("alt=sse")),
            ("a=1;key=2&b=3", Some("b=3")),
            ("subscription-key=a&token", Some("")),
            // Read up to where it is no text, or without that, by some.
            ("key%00=a&alt=sse&key%ff=b&key%zz=c", Some("alt=sse")),
            ("key[]=a&key%5b0%5D=b&access.token=c&alt=sse&Access Token=d", Some("alt=sse")),
            ("sig=a&X-Amz-Signature=b&X-Amz-Date=c", Some("X-Amz-Date=c")),
            ("alt=sse&pageToken=x&keys=1", None),
            ("", None),
        ] {
            assert_eq!(changes.without_keys(query).as_deref(), left, "{query}");
        }
        assert_eq!(Changes::default().without_keys("key=1"), None, "where no key is added, all stays");
        for (offered, left) in [
            (
                "realtime, openai-insecure-api-key.sk-1,openai-beta.realtime-v1",
                Some("realtime, openai-beta.realtime-v1"),
            ),
            ("OpenAI-Organization.a", Some("")),
            ("realtime, v4.channel.k8s.io", None),
            ("", None),
        ] {
            assert_eq!(changes.without_key_protocols(offered).as_deref(), left, "{offered}");
        }
        assert_eq!(Changes::default().without_key_protocols("openai-project.a"), None);
        for name in [
            "ocp-apim-subscription-key",
            "ocp_apim_subscription_key",
            "x-auth-token",
            "cookie",
            "openai-organization",
            "openai_project",
            "x-goog-user-project",
        ] {
            assert!(changes.takes(name) && !Changes::default().takes(name), "{name}");
        }
        // Policy names one as it likes: that is no secret.
        assert!(assigned("OpenAI-Organization: org-ours").is_ok());
    }

    #[test]
    fn the_last_by_id_counts_and_what_is_set_stays() {
        let change = |policy: &str, remove: Option<&str>, set: Option<(&str, &str)>| Obligation {
            policy: policy.into(),
            effect: Effect::Transform(Transform {
                remove: remove.map(Into::into),
                set: set.map(|(name, value)| (name.into(), value.into())),
                ..Transform::default()
            }),
            severity: Severity::Medium,
        };
        let all = [
            change("a", None, Some(("x", "1"))),
            change("b", Some("x"), Some(("y", "1"))),
            change("c", None, Some(("y", "2"))),
        ];
        let changes = Changes::of(&all);
        assert_eq!(changes.remove, ["x".into()]);
        let set: Vec<(&str, &str)> = changes.set.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(set, [("x", "1"), ("y", "2")]);
        let posing = [change("a", None, Some(("x-a", "1"))), change("b", Some("x_b"), Some(("x_a", "2")))];
        let changes = Changes::of(&posing);
        assert_eq!(changes.set, [("x_a".into(), "2".into())].into());
        assert!(
            changes.takes("x-a") && changes.takes("x_a") && changes.takes("x-b") && !changes.takes("x-c")
        );
        assert!(Changes::of(&[]).is_empty() && !changes.is_empty());
        // Whatever comes after it by its id, the platform's has the last word.
        let all = [
            change("platform/a", Some("y"), Some(("x", "9"))),
            change("platform/b", None, Some(("z", "9"))),
            change("x", None, Some(("x", "1"))),
            change("y", Some("z"), Some(("y", "1"))),
            // Servers may take it for the platform's.
            change("z", None, Some(("y_y", "1"))),
            change("platform/c", Some("y-y"), None),
        ];
        let changes = Changes::of(&all);
        let set: Vec<(&str, &str)> = changes.set.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(set, [("x", "9"), ("z", "9")]);
        assert_eq!(changes.remove, ["z".into(), "y".into(), "y-y".into()]);
    }
}
