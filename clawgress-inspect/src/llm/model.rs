//! Names of models in one form: `us.anthropic.claude-sonnet-4-20250514-v1:0`, `claude-sonnet-4@20250514` and
//! `anthropic/claude-sonnet-4` are of one family. Must never be what a permit of one exact model rests on: a family has many.

/// Whose models providers of many have, by how they name them.
const VENDORS: [&str; 18] = [
    "ai21",
    "amazon",
    "anthropic",
    "cohere",
    "deepseek",
    "google",
    "luma",
    "meta",
    "minimax",
    "mistral",
    "moonshot",
    "nvidia",
    "openai",
    "qwen",
    "stability",
    "twelvelabs",
    "writer",
    "zai",
];
/// Where Bedrock's profiles of several regions are, by how they name them.
const REGIONS: [&str; 9] = ["apac", "au", "ca", "eu", "global", "jp", "us", "us-gov", "sa"];

/// A model's name, taken apart; in lowercase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelName {
    /// Who made it, where its name says so.
    pub vendor: Option<String>,
    /// Without version, region and vendor: `claude-sonnet-4`.
    pub family: String,
    /// Its date or number: `20250514`; also `latest`, `preview`, or a tag.
    pub version: Option<String>,
    /// Whether it is trained further, by somebody.
    pub is_tuned: bool,
}

// === impl ModelName ===

impl ModelName {
    /// Of a model as a request names it.
    #[must_use]
    pub fn of(name: &str) -> ModelName {
        let name = name.trim().to_ascii_lowercase();
        let mut rest = name.as_str();
        let mut model = ModelName::default();
        if let Some(tuned) = rest.strip_prefix("ft:") {
            model.is_tuned = true;
            rest = tuned.split(':').next().unwrap_or(tuned);
        }
        if let Some((path, last)) = rest.rsplit_once('/') {
            model.is_tuned |= path.ends_with("tunedmodels");
            // `publishers/google/models/…`, `accounts/fireworks/models/…`, `openai/…`.
            let path = path.strip_suffix("/models").unwrap_or(path);
            let owner = path.rsplit('/').next().unwrap_or_default();
            if !matches!(owner, "models" | "tunedmodels") && !owner.contains(':') {
                model.vendor = Some(owner.to_owned());
            }
            rest = last;
        }
        let is_of_vendor =
            |inner: &str| inner.split('.').next().is_some_and(|first| VENDORS.contains(&first));
        let profile = rest.split_once('.').filter(|(region, _)| REGIONS.contains(region));
        if let Some((_, inner)) = profile.filter(|(_, inner)| inner.contains('.') && is_of_vendor(inner)) {
            rest = inner;
        }
        if let Some((vendor, inner)) = rest.split_once('.').filter(|(vendor, _)| VENDORS.contains(vendor)) {
            model.vendor = Some(vendor.to_owned());
            rest = inner;
        }
        let mut version = Vec::new();
        if let Some((before, at)) = rest.split_once('@') {
            version.push(at);
            rest = before;
        }
        if let Some((before, tag)) = rest.split_once(':') {
            version.push(tag);
            rest = before;
            // Bedrock's `-v1:0`.
            if let Some((before, number)) = rest.rsplit_once("-v").filter(|(_, n)| is_digits(n)) {
                version.push(number);
                rest = before;
            }
        }
        while let Some((before, part)) = last(rest) {
            version.push(part);
            rest = before;
        }
        version.reverse();
        model.version = (!version.is_empty()).then(|| version.join("-"));
        rest.clone_into(&mut model.family);
        model
    }
}

/// What of the end of a name is a version, and the name before it.
fn last(name: &str) -> Option<(&str, &str)> {
    let (before, part) = name.rsplit_once('-')?;
    let is_word = matches!(part, "latest" | "preview" | "exp" | "beta");
    // A year and month (2411), a date without a year (0613), a revision (001).
    let is_number =
        is_digits(part) && (part.len() == 8 || part.len() == 4 || part.len() == 3 && part.starts_with('0'));
    if is_word || is_number {
        return (!before.is_empty()).then_some((before, part));
    }
    // `2025-08-07`, and `preview-05-06`.
    let is_pair = |text: &str| text.len() == 2 && is_digits(text);
    let (start, _) = before.rsplit_once('-').filter(|(_, month)| is_pair(month) && is_pair(part))?;
    let (family, year) = start.rsplit_once('-')?;
    let is_year = year.len() == 4 && is_digits(year);
    let from = if is_year { family.len() } else { start.len() };
    if !is_year && year != "preview" {
        return None;
    }
    let (before, version) = name.split_at_checked(from)?;
    (!before.is_empty()).then_some((before, version.strip_prefix('-')?))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_family_by_many_names() {
        for (name, vendor, family, version) in [
            ("gpt-5", "", "gpt-5", ""),
            ("GPT-5-mini-2025-08-07", "", "gpt-5-mini", "2025-08-07"),
            ("openai/gpt-4o", "openai", "gpt-4o", ""),
            ("gpt-4-0613", "", "gpt-4", "0613"),
            ("ft:gpt-4o-mini-2024-07-18:acme::abc", "", "gpt-4o-mini", "2024-07-18"),
            ("claude-sonnet-4-20250514", "", "claude-sonnet-4", "20250514"),
            ("claude-sonnet-4@20250514", "", "claude-sonnet-4", "20250514"),
            ("us.anthropic.claude-sonnet-4-20250514-v1:0", "anthropic", "claude-sonnet-4", "20250514-1-0"),
            ("anthropic.claude-sonnet-4-20250514-v1:0", "anthropic", "claude-sonnet-4", "20250514-1-0"),
            ("claude-3-7-sonnet-latest", "", "claude-3-7-sonnet", "latest"),
            ("models/gemini-2.5-pro", "", "gemini-2.5-pro", ""),
            ("gemini-2.5-pro-preview-05-06", "", "gemini-2.5-pro", "preview-05-06"),
            ("gemini-2.0-flash-001", "", "gemini-2.0-flash", "001"),
            ("publishers/google/models/gemini-2.5-flash", "google", "gemini-2.5-flash", ""),
            ("accounts/fireworks/models/llama-v3p1-8b", "fireworks", "llama-v3p1-8b", ""),
            ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama", "llama-3.3-70b-instruct", ""),
            ("llama3.2:3b", "", "llama3.2", "3b"),
            ("mistral-large-2411", "", "mistral-large", "2411"),
            (
                "arn:aws:bedrock:us-east-1:111122223333:inference-profile/us.anthropic.claude-sonnet-4-20250514-v1:0",
                "anthropic",
                "claude-sonnet-4",
                "20250514-1-0",
            ),
            ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0", "amazon", "nova-pro", "1-0"),
            // What it stands for, its name does not say.
            (
                "arn:aws:bedrock:eu-west-1:111122223333:application-inference-profile/a1b2c3d4e5f6",
                "",
                "a1b2c3d4e5f6",
                "",
            ),
            ("amazon.nova-pro-v1:0", "amazon", "nova-pro", "1-0"),
            ("o3", "", "o3", ""),
            ("", "", "", ""),
            ("-2411", "", "-2411", ""),
            ("us.x", "", "us.x", ""),
        ] {
            let model = ModelName::of(name);
            assert_eq!(
                (
                    model.vendor.as_deref().unwrap_or(""),
                    &*model.family,
                    model.version.as_deref().unwrap_or("")
                ),
                (vendor, family, version),
                "{name}"
            );
        }
        assert!(ModelName::of("ft:gpt-4o:acme::x").is_tuned && ModelName::of("tunedModels/x").is_tuned);
    }
}
