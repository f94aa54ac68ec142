from apiflask import APIFlask, Schema, abort
from apiflask.fields import Integer, String
from apiflask.validators import Length

app = APIFlask(__name__, title="Pets", version="1.0")
app.config["SERVERS"] = [{"name": "Development", "url": "http://localhost:5000"}]

pets = []


class PetIn(Schema):
    name = String(required=True, validate=Length(1, 10))


class PetOut(Schema):
    id = Integer()
    name = String()


@app.get("/pets/<int:pet_id>")
@app.output(PetOut)
def get_pet(pet_id):
    if pet_id >= len(pets):
        abort(404)
    return pets[pet_id]


@app.get("/pets")
@app.output(PetOut(many=True))
def get_pets():
    return pets


@app.post("/pets")
@app.input(PetIn, location="json")
@app.output(PetOut, status_code=201)
def create_pet(json_data):
    pets.append({"id": len(pets), **json_data})
    return pets[-1]
