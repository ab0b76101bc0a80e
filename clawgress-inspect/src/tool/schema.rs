//! Arguments held against a tool's `inputSchema`: the keywords that tools use, in bounded steps.
//!
//! What a schema asks that is not understood here (patterns, formats, references elsewhere) is told as unchecked, never taken
//! for met. Fetches nothing, and runs no regular expression of a server.

use super::Value;

/// Most steps: a value held against a schema is one.
pub const STEPS_MAX: u32 = 50_000;
/// Entries of a list, or members, that are looked at in one.
const ENTRIES_A_STEP: usize = 32;
/// Bytes of a text or number that are.
const BYTES_A_STEP: usize = 256;
/// Longest number that is compared by what it is.
const NUMBER_BYTES_MAX: usize = 64;
/// Deepest that references and combinations may go.
const DEPTH_MAX: u32 = 64;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validity {
    /// All that the schema asks holds.
    Valid,
    /// Something does not: where, as a JSON pointer, and by which keyword.
    Invalid {
        /// RFC 6901.
        at: String,
        /// The keyword.
        keyword: String,
    },
    /// All that is understood holds; this keyword is not.
    Unchecked {
        /// The first of them.
        keyword: String,
    },
}

/// Holds arguments against a schema.
#[must_use]
pub fn validate(schema: &Value, arguments: &Value) -> Validity {
    let mut check = Check { root: schema, steps: 0, unchecked: None };
    match check.value(schema, arguments, "", 0) {
        Ok(()) => check.unchecked.map_or(Validity::Valid, |keyword| Validity::Unchecked { keyword }),
        Err((at, keyword)) => Validity::Invalid { at, keyword },
    }
}

struct Check<'a> {
    root: &'a Value,
    steps: u32,
    unchecked: Option<String>,
}

type Failed = (String, String);

/// Keywords that ask for nothing.
const NOTES: [&str; 14] = [
    "$schema",
    "$id",
    "$defs",
    "definitions",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$anchor",
    // What names the field that says an argument in the head.
    "x-mcp-header",
];

impl<'a> Check<'a> {
    fn value(&mut self, schema: &'a Value, value: &Value, at: &str, depth: u32) -> Result<(), Failed> {
        let bytes = match value {
            Value::Text(text) | Value::Number(text) => text.len(),
            _ => 0,
        };
        // Each keyword is looked at, and may read all of a leaf.
        let cost = 1 + bytes / BYTES_A_STEP + schema.members().len() / ENTRIES_A_STEP;
        if self.steps <= STEPS_MAX {
            self.steps = self.steps.saturating_add(u32::try_from(cost).unwrap_or(u32::MAX));
        }
        if self.steps > STEPS_MAX || depth > DEPTH_MAX {
            return self.skip("a schema of this size");
        }
        match schema {
            Value::Bool(true) => return Ok(()),
            Value::Object(_) => {}
            Value::Bool(false) => return Err((at.to_owned(), "false".to_owned())),
            _ => return self.skip("a schema that is none"),
        }
        for (keyword, asked) in schema.members() {
            let holds = match &**keyword {
                "type" => self.kind(asked, value)?,
                "enum" => self.is_one_of(asked.items(), value)?,
                "const" => self.is_one_of(std::slice::from_ref(asked), value)?,
                "properties" | "required" | "additionalProperties" | "minProperties" | "maxProperties" => {
                    self.object(keyword, schema, asked, value, (at, depth))?
                }
                "items" | "minItems" | "maxItems" => self.array(keyword, asked, value, (at, depth))?,
                "minLength" | "maxLength" | "minimum" | "maximum" | "exclusiveMinimum"
                | "exclusiveMaximum" => self.bound(keyword, asked, value)?,
                "allOf" | "anyOf" | "oneOf" | "not" => self.combined(keyword, asked, value, (at, depth))?,
                "$ref" => match self.reference(asked) {
                    Some(schema) => {
                        self.value(schema, value, at, depth + 1)?;
                        true
                    }
                    None => {
                        self.skip("$ref")?;
                        true
                    }
                },
                note if NOTES.contains(&note) => true,
                other => {
                    self.skip(other)?;
                    true
                }
            };
            if !holds {
                return Err((at.to_owned(), keyword.clone()));
            }
        }
        Ok(())
    }

    /// A member, which costs as many steps as it may take to find it. Where there are none left, nothing is known.
    fn found<'b>(&mut self, object: &'b Value, name: &str) -> Result<Option<&'b Value>, Failed> {
        self.spend(1 + object.members().len() / ENTRIES_A_STEP)?;
        Ok(object.member(name))
    }

    fn spend(&mut self, steps: usize) -> Result<(), Failed> {
        self.steps = self.steps.saturating_add(u32::try_from(steps).unwrap_or(u32::MAX));
        if self.steps > STEPS_MAX {
            // Refused, not skipped: a server that means it well has no schema of this size.
            return Err((String::new(), "a schema of this size".to_owned()));
        }
        Ok(())
    }

    /// Whether a value is one of these.
    fn is_one_of(&mut self, all: &[Value], value: &Value) -> Result<bool, Failed> {
        self.spend(all.len() / ENTRIES_A_STEP)?;
        for one in all {
            if self.is_same(one, value)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether two values are the same: numbers by what they are. As deep as what parsed them let them be.
    fn is_same(&mut self, a: &Value, b: &Value) -> Result<bool, Failed> {
        match (a, b) {
            (Value::Number(a), Value::Number(b)) => {
                let is_short = a.len().max(b.len()) <= NUMBER_BYTES_MAX;
                Ok(a == b || is_short && a.parse::<f64>().ok() == b.parse::<f64>().ok())
            }
            (Value::Array(all), Value::Array(others)) if all.len() == others.len() => {
                self.spend(1)?;
                for (one, other) in all.iter().zip(others) {
                    if !self.is_same(one, other)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Object(members), Value::Object(others)) if members.len() == others.len() => {
                for (name, one) in members {
                    let Some(other) = self.found(b, name)? else { return Ok(false) };
                    if !self.is_same(one, other)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Value::Array(_) | Value::Object(_), _) => Ok(false),
            (a, b) => Ok(a == b),
        }
    }

    /// Notes what is not understood.
    fn skip(&mut self, keyword: &str) -> Result<(), Failed> {
        if self.unchecked.is_none() {
            self.unchecked = Some(keyword.chars().take(64).collect());
        }
        Ok(())
    }

    fn kind(&mut self, asked: &Value, value: &Value) -> Result<bool, Failed> {
        let of = |name: &str| match (name, value) {
            ("null", Value::Null)
            | ("boolean", Value::Bool(_))
            | ("number", Value::Number(_))
            | ("string", Value::Text(_))
            | ("array", Value::Array(_))
            | ("object", Value::Object(_)) => true,
            ("integer", Value::Number(number)) => number.parse::<f64>().is_ok_and(|n| n.fract() == 0.0),
            _ => false,
        };
        Ok(match asked {
            Value::Text(name) => of(name),
            Value::Array(all) => {
                self.spend(all.len() / ENTRIES_A_STEP)?;
                all.iter().filter_map(Value::text).any(of)
            }
            _ => {
                self.skip("type")?;
                true
            }
        })
    }

    fn object(
        &mut self,
        keyword: &str,
        schema: &'a Value,
        asked: &'a Value,
        value: &Value,
        (at, depth): (&str, u32),
    ) -> Result<bool, Failed> {
        let Value::Object(members) = value else { return Ok(true) };
        match keyword {
            "required" => {
                for name in asked.items().iter().filter_map(Value::text) {
                    if self.found(value, name)?.is_none() {
                        return Err((pointer(at, name), keyword.to_owned()));
                    }
                }
            }
            "properties" => {
                for (name, schema) in asked.members() {
                    if let Some(value) = self.found(value, name)? {
                        self.value(schema, value, &pointer(at, name), depth + 1)?;
                    }
                }
            }
            "additionalProperties" => {
                if schema.member("patternProperties").is_some() {
                    return self.skip("patternProperties").map(|()| true);
                }
                let known = schema.member("properties");
                for (name, value) in members {
                    if let Some(known) = known
                        && self.found(known, name)?.is_some()
                    {
                        continue;
                    }
                    if *asked == Value::Bool(false) {
                        return Err((pointer(at, name), keyword.to_owned()));
                    }
                    self.value(asked, value, &pointer(at, name), depth + 1)?;
                }
            }
            _ => return self.counted(keyword, asked, members.len()),
        }
        Ok(true)
    }

    fn array(
        &mut self,
        keyword: &str,
        asked: &'a Value,
        value: &Value,
        (at, depth): (&str, u32),
    ) -> Result<bool, Failed> {
        let Value::Array(items) = value else { return Ok(true) };
        if keyword != "items" {
            return self.counted(keyword, asked, items.len());
        }
        if matches!(asked, Value::Array(_)) {
            return self.skip("items").map(|()| true);
        }
        for (n, item) in items.iter().enumerate() {
            self.value(asked, item, &pointer(at, &n.to_string()), depth + 1)?;
        }
        Ok(true)
    }

    fn bound(&mut self, keyword: &str, asked: &Value, value: &Value) -> Result<bool, Failed> {
        if let ("minLength" | "maxLength", Value::Text(text)) = (keyword, value) {
            return self.counted(keyword, asked, text.chars().count());
        }
        let (Value::Number(number), Value::Number(bound)) = (value, asked) else { return Ok(true) };
        let (Ok(number), Ok(bound)) = (number.parse::<f64>(), bound.parse::<f64>()) else { return Ok(false) };
        Ok(match keyword {
            "minimum" => number >= bound,
            "maximum" => number <= bound,
            "exclusiveMinimum" => number > bound,
            "exclusiveMaximum" => number < bound,
            _ => true,
        })
    }

    fn counted(&mut self, keyword: &str, asked: &Value, count: usize) -> Result<bool, Failed> {
        let Value::Number(bound) = asked else { return self.skip(keyword).map(|()| true) };
        let Ok(bound) = bound.parse::<usize>() else { return self.skip(keyword).map(|()| true) };
        Ok(if keyword.starts_with("min") { count >= bound } else { count <= bound })
    }

    fn combined(
        &mut self,
        keyword: &str,
        asked: &'a Value,
        value: &Value,
        (at, depth): (&str, u32),
    ) -> Result<bool, Failed> {
        if keyword == "allOf" {
            for schema in asked.items() {
                self.value(schema, value, at, depth + 1)?;
            }
            return Ok(true);
        }
        // What is not understood inside counts for all of it: it could hold or not.
        let mut inner = |schema: &'a Value| {
            let before = self.unchecked.take();
            let holds = self.value(schema, value, at, depth + 1).is_ok();
            let is_sure = self.unchecked.is_none();
            self.unchecked = before.or_else(|| self.unchecked.take());
            (holds, is_sure)
        };
        if keyword == "not" {
            let (holds, is_sure) = inner(asked);
            return Ok(!holds || !is_sure);
        }
        let all: Vec<(bool, bool)> = asked.items().iter().map(inner).collect();
        let holding = all.iter().filter(|(holds, _)| *holds).count();
        let is_sure = all.iter().all(|(_, is_sure)| *is_sure);
        Ok(if keyword == "anyOf" || !is_sure { holding > 0 } else { holding == 1 })
    }

    /// A schema inside this one: `#/$defs/name`.
    fn reference(&self, asked: &Value) -> Option<&'a Value> {
        let path = asked.text()?.strip_prefix('#')?;
        let mut found = self.root;
        for part in path.split('/').skip(1) {
            found = found.member(&part.replace("~1", "/").replace("~0", "~"))?;
        }
        Some(found)
    }
}

fn pointer(at: &str, name: &str) -> String {
    // Long enough to find it.
    let name: String = name.chars().take(64).collect();
    let name = name.replace('~', "~0").replace('/', "~1");
    format!("{at}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schema: &str, value: &str) -> Validity {
        let parse = |text: &str| Value::parse(text.as_bytes()).expect(text);
        validate(&parse(schema), &parse(value))
    }

    #[test]
    fn what_a_schema_asks_has_to_hold() {
        let schema = r##"{"type":"object","required":["path"],"additionalProperties":false,"properties":{
            "path":{"type":"string","minLength":1,"maxLength":5},"mode":{"enum":["r","w"]},"n":{"type":"integer","minimum":1,"exclusiveMaximum":10},
            "tags":{"type":"array","items":{"$ref":"#/$defs/tag"},"maxItems":2},"to":{"anyOf":[{"type":"null"},{"type":"string"}]},
            "one":{"oneOf":[{"type":"integer"},{"type":"number"}]},"no":{"not":{"const":1}},"both":{"allOf":[{"minimum":1},{"maximum":2}]}},
            "$defs":{"tag":{"type":["string","null"]}}}"##;
        let invalid = |value: &str, at: &str, keyword: &str| {
            let want = Validity::Invalid { at: at.to_owned(), keyword: keyword.to_owned() };
            assert_eq!(check(schema, value), want, "{value}");
        };
        for valid in [
            r#"{"path":"a"}"#,
            r#"{"path":"a","mode":"w","n":9.0,"tags":["x",null],"to":null,"one":1.5,"no":2,"both":1}"#,
        ] {
            assert_eq!(check(schema, valid), Validity::Valid, "{valid}");
        }
        invalid("{}", "/path", "required");
        invalid("[]", "", "type");
        invalid(r#"{"path":1}"#, "/path", "type");
        invalid(r#"{"path":""}"#, "/path", "minLength");
        invalid(r#"{"path":"ääääää"}"#, "/path", "maxLength");
        invalid(r#"{"path":"a","x/y":1}"#, "/x~1y", "additionalProperties");
        invalid(r#"{"path":"a","mode":"x"}"#, "/mode", "enum");
        invalid(r#"{"path":"a","n":1.5}"#, "/n", "type");
        invalid(r#"{"path":"a","n":10}"#, "/n", "exclusiveMaximum");
        invalid(r#"{"path":"a","tags":["x",1]}"#, "/tags/1", "type");
        invalid(r#"{"path":"a","tags":["x","x","x"]}"#, "/tags", "maxItems");
        invalid(r#"{"path":"a","to":1}"#, "/to", "anyOf");
        invalid(r#"{"path":"a","one":1}"#, "/one", "oneOf");
        invalid(r#"{"path":"a","no":1.0}"#, "/no", "not");
        invalid(r#"{"path":"a","both":3}"#, "/both", "maximum");
    }

    #[test]
    fn what_is_not_understood_is_told() {
        let unchecked = |keyword: &str| Validity::Unchecked { keyword: keyword.to_owned() };
        assert_eq!(check(r#"{"pattern":"a+"}"#, "\"b\""), unchecked("pattern"));
        assert_eq!(check(r#"{"$ref":"https://evil.test/schema"}"#, "1"), unchecked("$ref"));
        assert_eq!(check(r##"{"$ref":"#"}"##, "1"), unchecked("a schema of this size"));
        assert_eq!(check(r#"{"anyOf":[{"format":"x"},{"type":"null"}]}"#, "1"), unchecked("format"));
        assert_eq!(check(r#"{"not":{"format":"x"}}"#, "1"), unchecked("format"));
        // Each reference refers twice: bounded, whatever it would come to.
        let bomb =
            r##"{"$ref":"#/$defs/a","$defs":{"a":{"allOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/a"}]}}}"##;
        assert_eq!(check(bomb, "1"), unchecked("a schema of this size"));
    }

    #[test]
    fn what_has_no_end_is_refused_in_bounded_steps() {
        let list = |n: usize, of: &str| format!("[{}]", vec![of; n].join(","));
        let texts = (0..20_000).map(|n| format!("\"t{n}\"")).collect::<Vec<_>>().join(",");
        let number = "1".repeat(100_000);
        let members = (0..10_000).map(|n| format!("\"n{n}\":1")).collect::<Vec<_>>().join(",");
        let members = format!("{{{members}}}");
        let many = "{\"type\":\"number\",\"minimum\":0},".repeat(2_000);
        for (schema, value) in [
            (format!("{{\"items\":{{\"enum\":[{texts}]}}}}"), list(20_000, "\"t19999\"")),
            (format!("{{\"items\":{{\"type\":[{texts}]}}}}"), list(20_000, "1")),
            (format!("{{\"const\":{members}}}"), members),
            (format!("{{\"allOf\":[{many}true]}}"), number),
        ] {
            let (schema, value) = (
                Value::parse(schema.as_bytes()).expect("JSON"),
                Value::parse(value.as_bytes()).expect("JSON"),
            );
            let mut check = Check { root: &schema, steps: 0, unchecked: None };
            let done = check.value(&schema, &value, "", 0);
            assert!(done.is_err() || check.unchecked.is_some());
            // What one step may add beyond the bound is as much as one look at all of it.
            assert!(check.steps <= 2 * STEPS_MAX, "{}", check.steps);
        }
    }
}
