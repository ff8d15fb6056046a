"""What clients of others get from a server; run by a Python that has them and no fastslm."""

import base64
import contextlib
import json
import sys
from pathlib import Path


def by_litellm(url, key, model, talk, question):
    import litellm
    import openai

    settings = {"model": f"openai/{model}", "api_base": url, "api_key": key, "num_retries": 0}
    with open(talk, "rb") as file:
        yield "transcription", litellm.transcription(file=file, **settings).text
    data = base64.b64encode(Path(talk).read_bytes()).decode()
    content = [
        {"type": "text", "text": question},
        {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}},
    ]
    messages = [{"role": "user", "content": content}]
    yield "completion", litellm.completion(messages=messages, max_tokens=12, **settings).choices[0].message.content
    chunks = litellm.completion(messages=messages, max_tokens=12, stream=True, **settings)
    yield "stream", "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    try:
        litellm.transcription(file=("text.mp3", b"words " * 100), **settings)
    except openai.BadRequestError as error:
        yield "error", str(error)


def by_langchain(url, key, model, talk, question):
    from langchain_community.document_loaders.parsers.audio import OpenAIWhisperParser
    from langchain_core.documents.base import Blob
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    parser = OpenAIWhisperParser(api_key=key, base_url=url)  # it asks for whisper-1
    with contextlib.redirect_stdout(sys.stderr):
        yield "transcription", parser.parse(Blob.from_path(talk))[0].page_content
    data = base64.b64encode(Path(talk).read_bytes()).decode()
    content = [
        {"type": "text", "text": question},
        {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}},
    ]
    chat = ChatOpenAI(model=model, api_key=key, base_url=url, max_tokens=12, max_retries=0)
    yield "completion", chat.invoke([HumanMessage(content)]).content
    yield "stream", "".join(chunk.content for chunk in chat.stream([HumanMessage(content)]))


def by_llama_index(url, key, model, talk, question):
    from llama_index.readers.whisper import WhisperReader

    reader = WhisperReader(model=model, api_key=key, client_kwargs={"base_url": url})
    yield "transcription", reader.load_data(talk)[0].text


if __name__ == "__main__":
    which, *given = sys.argv[1:]
    kinds = {"litellm": by_litellm, "langchain": by_langchain, "llama_index": by_llama_index}
    print(json.dumps(dict(kinds[which](*given))))
