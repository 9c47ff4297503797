"""The HTML of a run's page, as a Jinja template: no script, nothing loaded from elsewhere."""

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ page.title }}</title>
<style>
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; color: #1a1a1a;
  margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; vertical-align: top }
th:first-child, td:first-child, td.text { text-align: left }
td.text { white-space: pre-line; overflow-wrap: anywhere }
figure { display: inline-block; margin: .5rem; max-width: 100% }
figure img { max-width: 34rem; width: 100% }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem }
dd { margin: 0; overflow-wrap: anywhere }
details { margin: .5rem 0 }
.none { color: #6b6b6b }
</style>
</head>
<body>
<h1>{{ page.title }}</h1>
<dl>{% for name, value in page.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<h2>Every arm</h2>
<table><thead><tr>{% for heading in page.columns %}<th scope="col">{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in page.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
<ul>
{% for note in page.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% for title, data, kind in pictures %}
<figure><img alt="{{ title }}" src="data:image/{{ kind }};base64,{{ data }}"></figure>
{% endfor %}
{% if page.comparisons %}
<h2>Paired comparisons with the best single arm</h2>
<table><thead><tr>{% for heading in headings %}<th scope="col">{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for cells, shown in comparisons %}
<tr{% if not shown %} class="none"{% endif %}>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endif %}
{% if page.judged %}
<h2>Judged by a model</h2>
<table><thead><tr>{% for heading in judged %}<th scope="col">{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in page.judged %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endif %}
{% if page.examples %}
<h2>Examples</h2>
<p>Where the routed answer was worth least beside the best one.</p>
{% for example in page.examples %}
<details{% if loop.first %} open{% endif %}><summary>{{ example.question }}</summary>
<table><tbody>
<tr><td>gold</td><td></td><td class="text">{{ example.gold or "(no answer in the documents)" }}</td></tr>
{% for answer in example.answers %}
<tr><td>{{ answer.arm }}</td><td>{{ "–" if answer.utility is none else "%.2f"|format(answer.utility) }}</td>
<td class="text">{{ answer.text or "(refused)" }}</td></tr>
{% endfor %}
</tbody></table></details>
{% endfor %}
{% endif %}
</body>
</html>
"""
