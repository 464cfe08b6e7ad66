use super::*;
use serde::Deserialize;

/// What `transformers` makes of the same; `fixtures/chat_templates.py` writes it.
#[derive(Deserialize)]
struct Fixture {
    tokens: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
    chats: Vec<Json>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    chat: usize,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn chats_are_written_as_transformers_writes_them() {
    let file = include_str!("../../fixtures/chat_templates.json");
    let fixture: Fixture = serde_json::from_str(file).unwrap();
    let mut refused = 0;
    for case in &fixture.cases {
        let source = &fixture.templates[&case.template];
        let template = ChatTemplate::new(source, fixture.tokens.clone()).unwrap();
        let chat = Chat::from_json(&fixture.chats[case.chat].to_string()).unwrap();
        let name = format!("{}, chat {}", case.template, case.chat);
        match (template.render(&chat), &case.error) {
            (Ok(text), None) => assert_eq!(Some(&text), case.text.as_ref(), "{name}"),
            (Err(error), Some(theirs)) => {
                assert!(
                    error.to_string().contains(theirs),
                    "{name}: {error}, not {theirs}"
                );
                refused += 1;
            }
            (ours, _) => panic!("{name}: {ours:?}, transformers {:?}", case.error),
        }
    }
    assert!(refused > 0);
}

#[test]
fn templates_are_found_in_folders() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || ChatTemplate::load(folder.path());
    assert_eq!(load().unwrap(), None);
    let chat = Chat::new(vec![]).with_user("hi");
    let text = |chat: &Chat| load().unwrap().unwrap().render(chat).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<e>"}, "chat_template": "{{ messages[0].content + eos_token }}"}"#,
    );
    assert_eq!(text(&chat), "hi<e>");
    let several = json!({ "chat_template": [
        { "name": "default", "template": "plain" },
        { "name": "tool_use", "template": "{{ tools | length }} tools" },
    ] });
    write("chat_template.json", &several.to_string());
    assert_eq!(text(&chat), "plain");
    let with_tools = Chat {
        tools: Some(json!([{}, {}])),
        ..chat.clone()
    };
    assert_eq!(text(&with_tools), "2 tools");
    write("chat_template.jinja", "{{ eos_token }}");
    assert_eq!(text(&chat), "<e>");
    write("tokenizer_config.json", "{");
    assert!(
        load()
            .unwrap_err()
            .to_string()
            .contains("tokenizer_config.json")
    );
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let new = |source: &str| ChatTemplate::new(source, BTreeMap::new());
    let message = |source: &str| new(source).unwrap_err().to_string();
    assert!(
        message("a\n{% if %}").contains("line 2"),
        "{}",
        message("a\n{% if %}")
    );
    assert!(message("{% for x in %}").starts_with("chat template: line 1"));
    let chat = Chat::new(vec![]).with_user("hi");
    let refused = |source: &str| new(source).unwrap().render(&chat).unwrap_err().to_string();
    let raised = refused("\n\n{{ raise_exception('no tools here') }}");
    assert_eq!(raised, "chat template: line 3: no tools here");
    assert!(refused("{{ messages[0].content.nothing() }}").contains("nothing"));
    let endless =
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
    assert!(refused(endless).contains("fuel"), "{}", refused(endless));
    assert!(refused("{{ strftime_now('%!') }}").contains("line 1"));
    assert!(
        new("{{ strftime_now('%Y') }}")
            .unwrap()
            .render(&chat)
            .unwrap()
            .len()
            == 4
    );
}

#[test]
fn messages_that_are_none_are_named() {
    let message = |text: &str| Chat::from_json(text).unwrap_err().to_string();
    assert!(message("[{").contains("line 1"));
    assert!(message("3").contains("a list"));
    assert!(message(r#"{"tools": []}"#).contains("`messages`"));
    assert!(
        message(r#"[{"role": "user", "content": "a"}, {"content": "b"}]"#).contains("message 2")
    );
    let chat = Chat::from_json(r#"[{"role": "system", "content": "a"}]"#).unwrap();
    let chat = chat.with_system("b").with_user("c");
    assert_eq!(chat.messages.len(), 2);
    assert_eq!(chat.messages[0]["content"], "b");
}
